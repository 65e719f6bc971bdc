"""A DeepSpeed ZeRO-3 engine without a launcher and without a compiler."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from datetime import timedelta
from typing import Any

import torch

from configs.schema import RunConfig


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


def zero3_engine(config: RunConfig, policy: str) -> tuple[Any, torch.optim.Optimizer]:
    """The policy's module under ZeRO-3, in training mode, and its optimizer."""
    import deepspeed
    from transformers import AutoModelForCausalLM

    # Float32 weights also for bfloat16 runs: DeepSpeed keeps the optimizer's copy exact and casts the module itself.
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    if config.deepspeed.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.optim.lr,
        betas=(config.optim.beta1, config.optim.beta2),
        weight_decay=config.optim.weight_decay,
    )
    engine, wrapped, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=_deepspeed_settings(config))
    engine.train()  # from_pretrained leaves eval mode, in which gradient checkpointing is silently off
    return engine, wrapped


def _deepspeed_settings(config: RunConfig) -> dict[str, Any]:
    bucket = config.deepspeed.bucket_mib << 18  # in elements of 4 bytes
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": 10**9,
        "gradient_clipping": config.optim.max_grad_norm,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": config.deepspeed.gpus_per_rank > 0,
            "contiguous_gradients": True,
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
            "reduce_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
        },
    }
