"""The estimate of memory: terms by hand, what must not make it smaller, and constants of what it speaks of."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.load import load_config
from configs.samplers import (
    DdeSettings,
    ParallelSettings,
    SamplerSettings,
    SequentialSettings,
    SesaSettings,
    TreeSettings,
    VerbalizedSettings,
)
from configs.schema import RunConfig
from orchestration import engine_memory, learner_memory, memory_table
from orchestration.cluster import ROOT
from orchestration.engine_memory import kv_cache, solutions_at_once
from orchestration.learner_memory import activation_bytes, logits_bytes
from orchestration.memory import estimate
from orchestration.memory_terms import GIB, MIB, Need, Term, either, share, total
from orchestration.shapes import KNOWN, ModelShape, shape_of

QWEN = KNOWN["Qwen/Qwen2.5-0.5B-Instruct"]
TINY = ModelShape(
    layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocabulary=32, tied=False, qkv_bias=True
)  # of 1,736 parameters
GPU: dict[str, Any] = {
    "model": {"dtype": "bfloat16"},
    "rollout": {"gpus_per_actor": 1},
    "deepspeed": {"ranks": 2, "gpus_per_rank": 1},
}
SOAK = ROOT / "docs" / "results" / "soak.json"


def configured(base: dict[str, Any] | None = None, **groups: dict[str, Any]) -> RunConfig:
    merged = {name: dict(group) for name, group in (base or {}).items()}
    for name, group in groups.items():
        merged[name] = merged.get(name, {}) | group
    return RunConfig.model_validate(merged)


def sizes(need: Need, phase: str | None = None) -> dict[str, int]:
    return {term.name: term.size for term in need.phases[phase or need.peak]}


def rank(config: RunConfig, shape: ModelShape) -> Need:
    return estimate(config, shape).needs[0]


def test_a_rank_in_mixed_precision_by_hand() -> None:
    """ZeRO's 2 + 2 + 12 bytes a parameter, of which each of two ranks holds half."""
    found = sizes(rank(configured(GPU), TINY), learner_memory.UPDATING)
    assert TINY.parameters == 1736
    assert found["weights"] == found["gradients"] == 868 * 2
    assert found["optimizer state"] == 868 * 12
    assert found["gathered weights"] == 1736 * 2
    assert found["whole gradients"] == TINY.layer_parameters * 2
    assert found["gradient bucket"] == 20 * MIB // 2
    assert "reference policy" not in found


def test_a_rank_in_float32_has_no_copy_of_the_weights() -> None:
    found = sizes(rank(configured(deepspeed={"ranks": 1}), TINY), learner_memory.UPDATING)
    assert (found["weights"], found["gradients"], found["optimizer state"]) == (6944, 6944, 8 * 1736)
    assert "gathered weights" not in found  # one rank has them all


@pytest.mark.parametrize(("offload", "gone"), [("optimizer", {"gradients", "optimizer state"}), ("all", {"weights"})])
def test_what_is_offloaded_is_in_the_hosts_memory(offload: str, gone: set[str]) -> None:
    config = configured(GPU, deepspeed={"offload": offload})
    device, _, host = estimate(config, TINY).needs
    there, offloaded = sizes(device, learner_memory.UPDATING), sizes(host, learner_memory.UPDATING)
    assert gone & set(there) == set()
    assert gone <= set(offloaded)
    # Both moments, a copy of the weights, and the gradients in float32.
    assert offloaded["optimizer state"] == 868 * 16


def test_every_rank_loads_the_whole_model() -> None:
    device, _, host = estimate(configured(GPU), TINY).needs
    assert sizes(device, learner_memory.LOADING)["whole model"] == 1736 * 2
    assert sizes(host, learner_memory.LOADING)["whole model, float32"] == 1736 * 4


def test_a_reference_is_counted_where_one_is_loaded() -> None:
    kl = {"kl": {"coefficient": 0.1}}
    assert sizes(rank(configured(GPU, grpo=kl), TINY))["reference policy"] == 868 * 2
    adapters = configured(GPU, grpo=kl, model={"lora": {"rank": 1}})
    assert "reference policy" not in sizes(rank(adapters, TINY))


@pytest.mark.parametrize("offload", ["none", "optimizer", "all"])
def test_every_rank_loads_the_whole_reference_beside_all_it_keeps(offload: str) -> None:
    kl = {"kl": {"coefficient": 0.1}}
    without, with_one = (
        estimate(configured(GPU, deepspeed={"offload": offload}, grpo=grpo), TINY).needs for grpo in ({}, kl)
    )
    for number, bytes_loaded in ((0, 2), (2, 4)):  # on its GPU, and in the node's memory before
        loading = sizes(with_one[number], learner_memory.LOADING_REFERENCE)
        whole = loading.pop("whole reference policy")
        assert whole == 1736 * bytes_loaded
        kept = sizes(without[number], learner_memory.UPDATING)
        assert {name: kept[name] for name in loading} == loading
        assert learner_memory.LOADING_REFERENCE not in without[number].phases
    assert ("weights" in sizes(with_one[0], learner_memory.LOADING_REFERENCE)) == (offload != "all")
    assert "optimizer state" in sizes(with_one[2 if offload != "none" else 0], learner_memory.LOADING_REFERENCE)


def test_on_a_cpu_the_whole_reference_is_float32() -> None:
    config = configured(deepspeed={"ranks": 2}, grpo={"kl": {"coefficient": 0.1}})
    found = sizes(rank(config, TINY), learner_memory.LOADING_REFERENCE)
    assert (found["whole reference policy"], found["optimizer state"]) == (1736 * 4, 868 * 8)


def test_adapters_alone_are_trained() -> None:
    found = sizes(rank(configured(GPU, model={"lora": {"rank": 1}}), TINY), learner_memory.UPDATING)
    adapters = 2 * (16 + 12 + 12 + 16 + 3 * 24)
    assert found["weights"] == (1736 + adapters)
    assert found["optimizer state"] == adapters // 2 * 12


def test_activations_by_hand() -> None:
    """A token of a layer in bfloat16: norms 2 * 8 * 8, attention 2 * (3 * 8 + 2 * 4), feed-forward 2 * 4 * 16."""
    layer, gradients = 128 + 64 + 128, 2 * (48 + 16)
    plain = configured(GPU, deepspeed={"tokens_per_micro_batch": 1000})
    assert activation_bytes(plain, TINY) == 1000 * (2 * layer + gradients)
    anew = configured(GPU, deepspeed={"tokens_per_micro_batch": 1000, "gradient_checkpointing": True})
    assert activation_bytes(anew, TINY) == 1000 * (2 * 2 * 8 + layer + gradients)


def test_few_logits_are_whole_in_float32_and_many_in_parts() -> None:
    assert logits_bytes(1000, 4) == 20_000
    many = 2**31
    assert logits_bytes(many, 2) == 6 * many + 20 * 2**24


@given(st.integers(0, 2**33), st.integers(0, 2**33), st.sampled_from([2, 4]))
def test_more_logits_never_need_less(one: int, other: int, width: int) -> None:
    assert logits_bytes(min(one, other), width) <= logits_bytes(max(one, other), width)


def test_a_cache_by_hand() -> None:
    """Keys and values of 24 layers, 2 heads of 64, 2 bytes: 12 KiB a token."""
    config = configured(GPU, model={"max_model_len": 1024}, sampler={"name": "parallel", "group_size": 4})
    cache = kv_cache(config, QWEN)
    assert (cache.sequence, cache.sequences, cache.size) == (12 * 1024 * 1024, 32, None)
    assert cache.wanted == 384 * MIB
    halves = configured(GPU, model={"max_model_len": 1024}, rollout={"tensor_parallel": 2})
    assert kv_cache(halves, QWEN).sequence == 6 * MIB


def test_an_engine_fills_its_share() -> None:
    config = configured(GPU, rollout={"gpu_memory_share": 0.5}, cluster={"gpu_memory_gib": 40})
    found = sizes(estimate(config, QWEN).needs[1])
    beside = found["transfer buckets"]
    assert total(estimate(config, QWEN).needs[1].terms) - beside == 20 * GIB
    assert found["weights"] == 2 * QWEN.parameters


def test_an_engine_on_a_cpu_has_the_cache_it_is_given() -> None:
    found = sizes(estimate(configured(rollout={"kv_cache_mib": 100}), TINY).needs[1])
    assert found["KV cache"] == 100 * MIB
    assert "CUDA graphs" not in found


def test_a_start_needs_room_for_one_context() -> None:
    small = configured(GPU, rollout={"gpu_memory_share": 0.5}, cluster={"gpu_memory_gib": 4})
    [floor] = estimate(small, QWEN).floors
    assert (floor.limit, floor.fits) == (2 * GIB, False)
    assert estimate(configured(GPU), QWEN).floors == ()
    assert estimate(configured(), TINY).floors == ()


def test_an_engine_on_half_of_a_gpu_has_half_of_it() -> None:
    config = configured(GPU, rollout={"actors": 1, "gpus_per_actor": 0.5}, cluster={"gpu_memory_gib": 10})
    learner, engine, _ = estimate(config, TINY).needs
    assert (learner.limit, engine.limit) == (10 * GIB, 5 * GIB)


SHARED: dict[str, Any] = {
    "model": {"dtype": "bfloat16"},
    "rollout": {"actors": 1, "gpus_per_actor": 0.5, "gpu_memory_share": 0.4},
    "deepspeed": {"ranks": 1, "gpus_per_rank": 0.5},
    "cluster": {"colocated": True, "gpu_memory_gib": 24},
}


def test_on_one_gpu_the_larger_phase_counts_and_what_stays() -> None:
    alone: dict[str, dict[str, Any]] = {
        "cluster": {"colocated": False},
        "rollout": {"gpus_per_actor": 1},
        "deepspeed": {"gpus_per_rank": 1},
    }
    learner, engine, _ = estimate(configured(SHARED, **alone), QWEN).needs
    together, host = estimate(configured(SHARED), QWEN).needs
    assert host.limit is None
    stays = {"weights", "gradients", "optimizer state", "gradient bucket", "CUDA context"}
    kept = sum(size for name, size in sizes(learner, learner_memory.SENDING).items() if name in stays)
    awake, alone_awake = sizes(together, learner_memory.SENDING), sizes(engine, engine_memory.TAKING)
    buckets = {role: awake.pop(f"{role}: transfer buckets") for role in ("learner", "engine")}
    assert sum(awake.values()) == kept + sum(alone_awake.values()) - alone_awake["transfer buckets"]
    # The rank packs one bucket that the engine reads, of which it makes one copy.
    assert 0 < buckets["engine"] < alone_awake["transfer buckets"]
    assert 0 < buckets["learner"] < sizes(learner, learner_memory.SENDING)["transfer buckets"]
    asleep = total(together.phases[learner_memory.UPDATING]) - total(learner.phases[learner_memory.UPDATING])
    assert asleep == 2 * GIB  # a context, and captured graphs
    assert together.size == max(map(total, together.phases.values()))
    assert {name.split(":")[0] for name in sizes(together, learner_memory.SENDING)} == {"learner", "engine"}


def test_the_engine_is_awake_while_the_rank_beside_it_loads_a_reference() -> None:
    config = configured(SHARED, grpo={"kl": {"coefficient": 0.1}})
    found = sizes(estimate(config, QWEN).needs[0], learner_memory.LOADING_REFERENCE)
    assert {"engine: KV cache", "learner: optimizer state", "learner: whole reference policy"} <= set(found)


@pytest.mark.parametrize(
    ("sampler", "at_once"),
    [
        (ParallelSettings(group_size=5), 5),
        (SequentialSettings(solutions=9, lists=3), 3),
        (SesaSettings(sketches=4, expansions_per_sketch=2, plain_solutions=3), 11),
        (VerbalizedSettings(responses=3), 3),
        (TreeSettings(trees=6, forks=2, branches=2), 24),
        (TreeSettings(trees=6, rounds=0), 6),
        (DdeSettings(root=ParallelSettings(group_size=4), branches=8), 32),
        (DdeSettings(root=ParallelSettings(group_size=20), branches=8, max_pivots=1), 20),
    ],
)
def test_solutions_sampled_side_by_side(sampler: SamplerSettings, at_once: int) -> None:
    assert solutions_at_once(sampler) == at_once


ranks = st.integers(1, 64)
tokens = st.integers(512, 1 << 20)


@given(ranks, ranks, st.sampled_from(["none", "optimizer", "all"]), st.booleans())
def test_more_ranks_never_raise_what_a_rank_keeps(one: int, other: int, offload: str, kl: bool) -> None:
    def kept(count: int) -> list[int]:
        grpo = {"kl": {"coefficient": 0.1 if kl else 0.0}}
        config = configured(GPU, deepspeed={"ranks": count, "offload": offload}, grpo=grpo)
        return [total(learner_memory.learner_stays(config, QWEN)), estimate(config, QWEN).needs[2].size]

    few, many = kept(min(one, other)), kept(max(one, other))
    assert all(more <= less for more, less in zip(many, few, strict=True))


@given(st.integers(2, 64), st.integers(2, 64))
def test_among_several_ranks_more_never_raise_the_sum(one: int, other: int) -> None:
    """One rank computes on the weights it keeps; two gather them besides."""
    needs = [rank(configured(GPU, deepspeed={"ranks": count}), QWEN) for count in sorted((one, other))]
    assert needs[1].size <= needs[0].size


@given(tokens, tokens, st.booleans(), st.sampled_from(["float32", "bfloat16"]))
def test_larger_micro_batches_never_lower_the_sum(one: int, other: int, anew: bool, dtype: str) -> None:
    def size(count: int) -> int:
        deepspeed = {"tokens_per_micro_batch": count, "gradient_checkpointing": anew}
        return rank(configured(GPU, deepspeed=deepspeed, model={"dtype": dtype}), QWEN).size

    assert size(min(one, other)) <= size(max(one, other))


@given(st.integers(1, 512), st.integers(1, 512))
def test_more_prompts_in_flight_never_lower_what_the_cache_should_hold(one: int, other: int) -> None:
    wanted = [kv_cache(configured(GPU, rollout={"prompts_in_flight": n}), QWEN).wanted for n in sorted((one, other))]
    assert wanted[0] <= wanted[1]


def test_the_largest_part_and_words() -> None:
    assert [share(10, 3), share(9, 3), share(1, 8)] == [4, 3, 1]
    assert [either("a", "b", "c"), either("a", ""), either("")] == ["a, b or c", "a", ""]
    need = Need("x", {"small": [Term("a", 1)], "large": [Term("b", 2), Term("c", 3)]}, limit=5)
    assert (need.peak, need.size, need.largest.name, need.fits) == ("large", 5, "c", True)


def test_constants_are_those_of_what_is_counted() -> None:
    from learner import gather, logprobs

    assert (learner_memory.CHUNK, learner_memory.MANY) == (logprobs.CHUNK, logprobs.MANY)
    assert learner_memory.GATHER_MIB * MIB == gather.CHUNK_BYTES


def test_what_deepspeed_holds_gathered_is_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    defaults = DeepSpeedZeroConfig()
    assert defaults.max_reuse_distance == learner_memory.REUSED_WITHIN
    assert defaults.sub_group_size == learner_memory.STEPPED_AT_ONCE


def test_a_vocabulary_is_padded_as_vllm_pads_it() -> None:
    found = find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).parent / "model_executor/layers/vocab_parallel_embedding.py"
    assert f"\nDEFAULT_VOCAB_PADDING_SIZE = {memory_table.VOCABULARY_PADDED_TO}\n" in source.read_text()


@pytest.mark.skipif(not SOAK.exists(), reason="no run of `make soak` is kept")
@pytest.mark.parametrize(("kind", "number"), [("learner", 0), ("actors", 1)])
def test_the_estimate_is_within_a_fifth_of_what_was_measured(kind: str, number: int) -> None:
    """The most that two processes of each kind had resident, over hours of quickstart.yaml."""
    config = load_config(Path(ROOT / "configs/quickstart.yaml"), [])
    measured = json.loads(SOAK.read_text())["kinds"][kind]["peak_mib"] / 2
    assert estimate(config, shape_of(config)).needs[number].size / MIB == pytest.approx(measured, rel=0.2)


def test_libraries_are_most_of_a_process_on_a_cpu() -> None:
    config = load_config(Path(ROOT / "configs/quickstart.yaml"), [])
    for need in estimate(config, shape_of(config)).needs:
        assert need.largest.name == "libraries"
    assert engine_memory.LIBRARIES > learner_memory.LIBRARIES
