"""A DeepSpeed ZeRO-3 engine without a launcher and without a compiler."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from configs.schema import RunConfig


def meeting_place(address: str, limit_s: float) -> dist.TCPStore:
    """A store at this address for as long as it is held, at a port that was free: that of `join_ranks`.

    A port that is merely known to be free may be an engine's by the time the ranks come. torch, told to open a store at
    a port, takes the one its own process has there.
    """
    limit = timedelta(seconds=limit_s)
    return dist.TCPStore(address, 0, None, True, limit, wait_for_workers=False, multi_tenant=True)


def join_ranks(config: RunConfig, rank: int, address: str, port: int) -> None:
    """Join the process group of all ranks; every later collective has its time limit, deepspeed.timeout_s."""
    on_gpu = config.deepspeed.gpus_per_rank > 0
    # DeepSpeed reads these while it is imported. LOCAL_RANK is 0 on GPUs too: Ray shows each actor its own alone.
    os.environ |= {
        "DS_ACCELERATOR": "cuda" if on_gpu else "cpu",
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(config.deepspeed.ranks),
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    _quieten()
    import deepspeed

    if not on_gpu:
        # Else a C++ extension is built that only inference collectives use; that would take a compiler.
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    torch.manual_seed(config.run.seed)
    timeout = timedelta(seconds=config.deepspeed.timeout_s)
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False, timeout=timeout)


def _quieten() -> None:
    """Silence what DeepSpeed and torch repeat at every step and nobody can act on."""
    warnings.filterwarnings("ignore", category=FutureWarning, message=r".*torch\.distributed\..*is deprecated.*")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def zero3_engine(config: RunConfig, model: nn.Module) -> tuple[Any, torch.optim.Optimizer]:
    """The policy's module under ZeRO-3, in training mode, and its optimizer, over what has a gradient."""
    import deepspeed

    _one_unit_a_layer(model)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.optim.lr,
        betas=(config.optim.beta1, config.optim.beta2),
        weight_decay=config.optim.weight_decay,
    )
    engine, wrapped, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=_deepspeed_settings(config))
    engine.train()  # from_pretrained leaves eval mode, in which gradient checkpointing is silently off
    return engine, wrapped


def zero3_reference(config: RunConfig, model: nn.Module) -> Any:
    """A frozen module, partitioned over the ranks like the policy, without gradients or optimizer."""
    import deepspeed

    _one_unit_a_layer(model)
    engine, _, _, _ = deepspeed.initialize(model=model, config=_deepspeed_settings(config))
    engine.eval()
    return engine


def leave_gpu(engine: Any, config: RunConfig) -> None:
    """To the engine on it, which is to wake: ZeRO-3 keeps what it gathered last, and torch what was freed."""
    if config.shares_gpus:
        engine.empty_partition_cache()  # of both


def _one_unit_a_layer(model: nn.Module) -> None:
    """Fetch a decoder layer's parameters at once and not linear by linear: a tenth of the hooks and of the messages."""
    from deepspeed.utils import set_z3_leaf_modules
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = sorted({type(m) for m in model.modules() if isinstance(m, GradientCheckpointingLayer)}, key=str)
    if layers:
        set_z3_leaf_modules(model, layers)


def _deepspeed_settings(config: RunConfig) -> dict[str, Any]:
    settings = config.deepspeed
    bucket = settings.bucket_mib << 18  # in elements of 4 bytes
    on_gpu = settings.gpus_per_rank > 0
    in_host_memory = {"device": "cpu", "pin_memory": on_gpu}
    offload: dict[str, Any] = {}
    if settings.offload != "none":
        offload["offload_optimizer"] = in_host_memory
    if settings.offload == "all":
        offload["offload_param"] = in_host_memory
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": 10**9,
        "gradient_clipping": config.optim.max_grad_norm,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own Adam for offloaded state is compiled at first use; torch's needs no compiler.
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": on_gpu,
            "contiguous_gradients": True,
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
            "reduce_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
            **offload,
        },
    }
