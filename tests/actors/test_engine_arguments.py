"""A run's settings as vLLM gets them: of engines on CPUs, on GPUs, in parts, and beside a learner rank."""

from __future__ import annotations

from typing import Any

import pytest

from actors.engine_arguments import STEP_TOKENS, engine_arguments
from configs.schema import RunConfig

ON_GPUS: dict[str, Any] = {"rollout": {"gpus_per_actor": 1}, "deepspeed": {"gpus_per_rank": 1}}
IN_PARTS: dict[str, Any] = ON_GPUS | {"rollout": {"gpus_per_actor": 1, "tensor_parallel": 2}}
BESIDE_A_RANK: dict[str, Any] = {
    "rollout": {"gpus_per_actor": 0.5, "actors": 1},
    "deepspeed": {"gpus_per_rank": 0.5, "ranks": 1},
    "cluster": {"colocated": True},
}
ONLY_ON_GPUS = {
    "gpu_memory_utilization", "tensor_parallel_size", "distributed_executor_backend", "enable_sleep_mode",
    "async_scheduling",
}  # fmt: skip
ONLY_ON_CPUS = {"kv_cache_memory_bytes", "enable_chunked_prefill"}


def arguments(groups: dict[str, Any], index: int = 0, **more: dict[str, Any]) -> dict[str, Any]:
    """Of a run with these settings, `more` added to their groups."""
    merged = {name: groups.get(name, {}) | more.get(name, {}) for name in groups.keys() | more.keys()}
    return engine_arguments(RunConfig.model_validate(merged), "policy", index)


def test_an_engine_on_cpus() -> None:
    made = arguments({}, rollout={"kv_cache_mib": 96})
    assert made["kv_cache_memory_bytes"] == 96 << 20
    assert made["enable_chunked_prefill"] is False
    assert made["enforce_eager"] is True
    assert not ONLY_ON_GPUS & made.keys()


def test_an_engine_on_a_gpu() -> None:
    made = arguments(ON_GPUS, rollout={"gpu_memory_share": 0.75})
    assert made["gpu_memory_utilization"] == 0.75
    assert (made["tensor_parallel_size"], made["distributed_executor_backend"]) == (1, "uni")
    assert made["enable_sleep_mode"] is False
    assert made["async_scheduling"] is False  # or a step is still out when weights come
    assert not ONLY_ON_CPUS & made.keys()


def test_an_engine_in_parts_has_a_process_for_each() -> None:
    made = arguments(IN_PARTS)
    assert (made["tensor_parallel_size"], made["distributed_executor_backend"]) == (2, "mp")


def test_an_engine_beside_a_rank_can_sleep() -> None:
    assert arguments(BESIDE_A_RANK)["enable_sleep_mode"] is True


@pytest.mark.parametrize(("groups", "graphs"), [({}, False), (ON_GPUS, True), (IN_PARTS, True), (BESIDE_A_RANK, True)])
def test_cuda_graphs_are_a_setting_of_gpus(groups: dict[str, Any], graphs: bool) -> None:
    assert arguments(groups, rollout={"cuda_graphs": True})["enforce_eager"] is not graphs
    assert arguments(groups, rollout={"cuda_graphs": False})["enforce_eager"] is True


@pytest.mark.parametrize(
    ("groups", "backend"),
    [({}, "gloo"), (ON_GPUS, "watched_nccl"), (IN_PARTS, "watched_nccl"), (BESIDE_A_RANK, "ipc")],
)
def test_the_transfer_is_one_that_vllm_knows(groups: dict[str, Any], backend: str) -> None:
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    from actors.weight_receiver import register

    register()
    assert arguments(groups)["weight_transfer_config"] == {"backend": backend}
    assert backend in WeightTransferEngineFactory._registry


def test_gloo_carries_weights_between_gpus_where_asked() -> None:
    assert arguments(ON_GPUS, sync={"backend": "gloo"})["weight_transfer_config"] == {"backend": "gloo"}


@pytest.mark.parametrize("groups", [{}, ON_GPUS, IN_PARTS, BESIDE_A_RANK])
def test_what_all_engines_have_in_common(groups: dict[str, Any]) -> None:
    made = arguments(groups, index=3, model={"dtype": "bfloat16", "max_model_len": 512}, rollout={"max_num_seqs": 24})
    assert (made["model"], made["dtype"], made["max_model_len"], made["max_num_seqs"]) == (
        "policy",
        "bfloat16",
        512,
        24,
    )
    assert made["enable_prefix_caching"] is True
    assert made["logprobs_mode"] == "processed_logprobs"
    assert made["worker_extension_cls"] == "actors.weight_receiver.WeightTaking"
    assert made["seed"] == 3


def test_a_step_takes_a_whole_context() -> None:
    assert arguments({})["max_num_batched_tokens"] == STEP_TOKENS
    long = arguments({}, model={"max_model_len": 16384}, deepspeed={"tokens_per_micro_batch": 16384})
    assert long["max_num_batched_tokens"] == 16384


@pytest.mark.parametrize("groups", [{}, ON_GPUS, IN_PARTS, BESIDE_A_RANK])
def test_vllm_has_every_argument(groups: dict[str, Any]) -> None:
    from dataclasses import fields

    from vllm.engine.arg_utils import EngineArgs

    assert arguments(groups).keys() <= {field.name for field in fields(EngineArgs)}
