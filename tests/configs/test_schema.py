"""The schema as a whole: no key without a reader, cross-field checks that name both fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from configs.schema import RunConfig, WarmupSettings

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path for part in ("configs", "envs", "actors", "learner", "orchestration") for path in (ROOT / part).rglob("*.py")
]


def members(annotation: object) -> list[type[BaseModel]]:
    """The groups a field may hold: one, several for a union, none for a value."""
    options = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type)]
    return [t for t in options if issubclass(t, BaseModel)]


def leaves(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        groups = members(field.annotation)
        for group in groups:
            yield from leaves(group)
        if not groups:
            yield name


def longest(model: type[BaseModel]) -> int:
    """Keys of one run: of a union, those of its longest member."""
    groups = [members(field.annotation) for field in model.model_fields.values()]
    return sum(max(map(longest, options)) if options else 1 for options in groups)


def test_every_key_is_read_somewhere() -> None:
    definitions = [ROOT / "configs" / name for name in ("schema.py", "environments.py")]
    code = "\n".join(path.read_text() for path in SOURCES if path not in definitions)
    schema = "\n".join(path.read_text() for path in definitions)
    names = set(leaves(RunConfig))
    by_enum = {"solution", "sketch", "branch"}  # read by stream: `getattr(weights, stream)`
    unread = [
        n for n in names - by_enum if not re.search(rf"\.{n}\b", code) and not re.search(rf"self\.\w+\.{n}\b", schema)
    ]
    assert unread == []
    assert 60 <= longest(RunConfig) <= 195  # a run of DDE with SESA at its root has the keys of both


WHOLE: dict[str, Any] = {"rollout": {"gpus_per_actor": 1}, "deepspeed": {"gpus_per_rank": 1}}
SHARING: dict[str, Any] = {
    "rollout": {"actors": 2, "gpus_per_actor": 0.5},
    "deepspeed": {"ranks": 2, "gpus_per_rank": 0.5},
    "cluster": {"colocated": True},
}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"queue": {"max_groups": 4}}, ("queue.max_groups (4)", "grpo.groups_per_update (16)")),
        (
            {"deepspeed": {"tokens_per_micro_batch": 100}},
            ("deepspeed.tokens_per_micro_batch (100)", "model.max_model_len"),
        ),
        ({"rollout": {"tokens_per_turn": 4096}}, ("rollout.tokens_per_turn (4096)", "model.max_model_len")),
        ({"rollout": {"block_size": 16}}, ("rollout.block_size (16)", "rollout.gpus_per_actor")),
        ({"rollout": {"gpus_per_actor": 1}}, ("rollout.gpus_per_actor (1)", "deepspeed.gpus_per_rank (0)")),
        ({"rollout": {"tensor_parallel": 2}}, ("rollout.tensor_parallel (2)", "rollout.gpus_per_actor")),
        (
            {"rollout": {"gpus_per_actor": 1.5}, "deepspeed": {"gpus_per_rank": 1}},
            ("rollout.gpus_per_actor (1.5)", "give 1, or a share of it"),
        ),
        (
            {"rollout": {"gpus_per_actor": 1}, "deepspeed": {"gpus_per_rank": 2}},
            ("deepspeed.gpus_per_rank (2)", "give 1, or a share of it"),
        ),
        (
            {
                "rollout": {"gpus_per_actor": 0.5, "tensor_parallel": 2},
                "deepspeed": {"gpus_per_rank": 0.5},
                "cluster": {"colocated": True},
            },
            ("rollout.tensor_parallel (2)", "whole GPUs", "rollout.gpus_per_actor is 0.5"),
        ),
        ({"rollout": {"node_resources": {"GPU": 1}}}, ("GPU: has a key of its own",)),
        ({"deepspeed": {"node_labels": {"zone": "in(a"}}}, ("node_labels", "must be a label's value")),
        (
            {"env": {"name": "math", "data": "x.jsonl", "grade_timeout_s": 5}},
            ("env.grade_timeout_s (5)", "rollout.env_timeout_s (10)"),
        ),
        (
            {"rollout": {"gpus_per_actor": 0.5}, "deepspeed": {"gpus_per_rank": 0.5}},
            ("rollout.gpus_per_actor (0.5)", "deepspeed.gpus_per_rank (0.5)", "cluster.colocated"),
        ),
        (
            WHOLE | {"deepspeed": {"ranks": 8, "gpus_per_rank": 0.5}},
            ("deepspeed.ranks (8)", "deepspeed.gpus_per_rank (0.5)", "no two ranks on one GPU", "gpus_per_rank=1"),
        ),
        (
            WHOLE | {"deepspeed": {"ranks": 2, "gpus_per_rank": 0.25}, "sync": {"backend": "gloo"}},
            ("deepspeed.ranks (2)", "deepspeed.gpus_per_rank (0.25)"),  # NCCL is theirs whatever weights go over
        ),
        (
            WHOLE | {"rollout": {"actors": 8, "gpus_per_actor": 0.5}},
            (
                "rollout.actors (8)",
                "rollout.gpus_per_actor (0.5)",
                "no two engines can be on one GPU",
                "gpus_per_actor=1",
            ),
        ),
        (
            WHOLE | {"rollout": {"actors": 2, "gpus_per_actor": 0.5}, "sync": {"backend": "gloo"}},
            ("rollout.actors (2)", "rollout.gpus_per_actor (0.5)"),  # both measure what is free while they start
        ),
        (
            WHOLE | {"rollout": {"actors": 1, "max_actors": 3, "gpus_per_actor": 0.5}},
            ("rollout.max_actors (3)", "rollout.gpus_per_actor (0.5)"),
        ),
        (
            {"rollout": {"gpus_per_actor": 0.5}, "deepspeed": {"gpus_per_rank": 0.75}, "cluster": {"colocated": True}},
            ("rollout.gpus_per_actor (0.5)", "deepspeed.gpus_per_rank (0.75)", "cluster.colocated"),
        ),
        (
            {
                "rollout": {"actors": 2, "gpus_per_actor": 0.5},
                "deepspeed": {"ranks": 1, "gpus_per_rank": 0.5},
                "cluster": {"colocated": True},
            },
            ("deepspeed.ranks (1)", "rollout.actors (2)", "rollout.tensor_parallel (1)"),
        ),
        (
            SHARING | {"rollout": {"actors": 2, "gpus_per_actor": 0.25}},
            ("rollout.gpus_per_actor (0.25)", "deepspeed.gpus_per_rank (0.5)", "must be one GPU together"),
        ),
        (SHARING | {"sync": {"backend": "nccl"}}, ("cluster.colocated", "sync.backend is nccl")),
        (SHARING | {"sync": {"checksum": True}}, ("sync.checksum", "sync.backend")),
        (
            SHARING | {"rollout": {"actors": 2, "gpus_per_actor": 0.5, "max_actors": 3}},
            ("cluster.colocated", "rollout.max_actors (3)", "rollout.actors (2)"),
        ),
        (
            SHARING | {"deepspeed": {"ranks": 2, "gpus_per_rank": 0.5, "node_labels": {"zone": "a"}}},
            ("cluster.colocated", "rollout.node_labels", "deepspeed.node_labels ({'zone': 'a'})"),
        ),
        ({"env": {"name": "countdown", "max_turns": 3}}, ("max_turns (3)", "max_actions (1)")),
        ({"env": {"name": "frozen_lake", "actions_per_turn": 9}}, ("actions_per_turn (9)", "max_actions (6)")),
        ({"env": {"name": "sudoku", "blanks": 12, "max_actions": 16, "size": 9, "max_turns": 0}}, ("max_turns",)),
        ({"sync": {"backend": "nccl"}}, ("sync.backend", "rollout.gpus_per_actor")),
        (
            {"sync": {"checksum": True}, "rollout": {"gpus_per_actor": 1}, "deepspeed": {"gpus_per_rank": 1}},
            ("sync.checksum", "sync.backend"),
        ),
        ({"model": {"warmup": {"hidden": 64, "heads": 4}}}, ("hidden (64)", "heads (4)")),
        ({"grpo": {"overlong": {"buffer_tokens": 49}}}, ("buffer_tokens (49)", "tokens_per_turn (48)")),
        ({"checkpoint": {"best_by": "success", "every": 0}}, ("checkpoint.best_by (success)", "checkpoint.every")),
        ({"optim": {"min_lr_share": 0.1}}, ("min_lr_share (0.1)", "schedule")),
        ({"grpo": {"kl": {"reference": "x"}}}, ("kl.reference (x)", "kl.coefficient")),
        ({"grpo": {"objective": "cispo", "dual_clip": 3}}, ("dual_clip (3)", "objective (cispo)")),
        ({"grpo": {"entropy": {"name": "kl_cov"}}}, ("entropy.name (kl_cov)", "epochs (1)")),
        ({"grpo": {"entropy": {"name": "clip_cov", "low": 5}}}, ("entropy.low (5)", "entropy.high (5)")),
    ],
)
def test_cross_field_checks_name_both(settings: dict[str, object], names: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as refusal:
        RunConfig.model_validate(settings)
    assert all(name in str(refusal.value) for name in names)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        WarmupSettings().layers = 3  # type: ignore[misc]


def test_an_engine_and_a_rank_share_a_gpu_where_it_is_said() -> None:
    config = RunConfig.model_validate(SHARING)
    assert (config.shares_gpus, config.transfer_backend) == (True, "ipc")
    through_memory = RunConfig.model_validate(SHARING | {"sync": {"backend": "gloo"}})
    assert through_memory.transfer_backend == "gloo"


@pytest.mark.parametrize(
    "settings",
    [
        {"rollout": {"actors": 1, "gpus_per_actor": 0.5}},
        {"deepspeed": {"ranks": 1, "gpus_per_rank": 0.5}},
    ],
)
def test_part_of_a_gpu_is_for_one_engine_or_one_rank(settings: dict[str, Any]) -> None:
    assert not RunConfig.model_validate(WHOLE | settings).shares_gpus


def test_on_cpus_they_take_turns_and_share_nothing_else() -> None:
    config = RunConfig.model_validate({"cluster": {"colocated": True}})
    assert (config.shares_gpus, config.transfer_backend) == (False, "gloo")


@pytest.mark.parametrize("gib", [0, -1, float("inf")])
def test_a_gpu_has_some_memory(gib: float) -> None:
    with pytest.raises(ValidationError, match="gpu_memory_gib"):
        RunConfig.model_validate({"cluster": {"gpu_memory_gib": gib}})


@pytest.mark.parametrize(("gpus", "backend"), [(0.0, "gloo"), (1.0, "nccl")])
def test_backend_follows_the_device(gpus: float, backend: str) -> None:
    assert (
        RunConfig.model_validate(
            {"rollout": {"gpus_per_actor": gpus}, "deepspeed": {"gpus_per_rank": gpus}}
        ).transfer_backend
        == backend
    )
