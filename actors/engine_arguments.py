"""A run's settings in vLLM's words."""

from __future__ import annotations

from typing import Any

from configs.schema import RunConfig

STEP_TOKENS = 8192  # most tokens of one engine step, unless a context is longer
# Of each transfer_backend; NCCL's is vLLM's own, watched (actors/nccl_receiver.py).
TRANSFERS = {"nccl": "watched_nccl", "ipc": "ipc", "gloo": "gloo"}


def engine_arguments(config: RunConfig, policy: str, index: int) -> dict[str, Any]:
    """vLLM's engine arguments for one rollout actor; every engine needs a seed of its own or samples repeat."""
    rollout, on_gpu = config.rollout, config.rollout.gpus_per_actor > 0
    memory: dict[str, Any] = (
        {
            "gpu_memory_utilization": rollout.gpu_memory_share,
            # On GPUs vLLM begins a step before the one before it has been read; tokens of a step that is still out when
            # weights come would be booked to the wrong version but for what a call of vLLM's does besides.
            "async_scheduling": False,
            "tensor_parallel_size": rollout.tensor_parallel,
            # In a placement group vLLM would start Ray actors for the parts, in bundles of one GPU each.
            "distributed_executor_backend": "mp" if rollout.tensor_parallel > 1 else "uni",
            # Weights and cache then lie in memory that vLLM can give back and get again at the same addresses.
            "enable_sleep_mode": config.shares_gpus,
        }
        if on_gpu
        else {
            # The engine's own guess reads one NUMA node's memory; a number of bytes is exact.
            "kv_cache_memory_bytes": rollout.kv_cache_mib << 20,
            # A prefill cut in two takes back a draw of the request's own generator, which a CPU generator cannot do:
            # the step would raise.
            "enable_chunked_prefill": False,
        }
    )
    return {
        "model": policy,
        # Neither code that comes with a model nor pickled weights, which are code too.
        "trust_remote_code": False,
        "load_format": "safetensors",
        "dtype": config.model.dtype,
        "max_model_len": config.model.max_model_len,
        "max_num_seqs": rollout.max_num_seqs,
        # Whole prefills need a budget of at least one full context; vLLM's own is 2048 for an engine in our process.
        "max_num_batched_tokens": max(STEP_TOKENS, config.model.max_model_len),
        "block_size": rollout.block_size,
        "enable_prefix_caching": True,
        "enforce_eager": not (on_gpu and rollout.cuda_graphs),
        # The learner divides logits by the temperature too: both sides speak of the distribution sampled from.
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": {"backend": TRANSFERS[config.transfer_backend]},
        "worker_extension_cls": "actors.weight_receiver.WeightTaking",
        "disable_log_stats": True,
        "seed": index,
        **memory,
    }
