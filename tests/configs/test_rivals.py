"""The rivals' files: each is what its paper says, and differs from plain GRPO's file in nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_config
from configs.schema import RunConfig

CONFIGS = Path(__file__).parents[2] / "configs"
RIVALS = CONFIGS / "rivals"
PLAIN = load_config(CONFIGS / "frozen_lake_parallel.yaml", [])

# What each file changes of frozen_lake_parallel.yaml, by dotted path.
CHANGES: dict[str, dict[str, Any]] = {
    "grpo": {"grpo.normalizer": "sequence", "grpo.kl.coefficient": 0.04, "grpo.drop_zero_signal": False},
    "dr_grpo": {"grpo.normalizer": "constant", "grpo.normalize_std": False, "grpo.drop_zero_signal": False},
    "dapo": {
        "grpo.clip_high": 0.28,
        "grpo.old_policy": "behaviour",
        "grpo.overlong.mask_truncated": True,
        "grpo.overlong.buffer_tokens": 8,
    },
    "entropy_bonus": {"grpo.entropy": {"name": "bonus", "coefficient": 1e-3}},
    "clip_cov": {"grpo.entropy": {"name": "clip_cov", "share": 2e-4, "low": 1.0, "high": 5.0}},
    "kl_cov": {
        "grpo.entropy": {"name": "kl_cov", "share": 2e-3, "coefficient": 1.0},
        "grpo.old_policy": "behaviour",
    },
    "tree": {"sampler.name": "tree", "grpo.groups_per_update": 4},
    "dde": {
        "sampler.name": "dde",
        "grpo.normalize_std": False,
        "grpo.dual_clip": 3.0,
        "grpo.kl.coefficient": 1e-4,
    },
    "verbalized": {
        "sampler.name": "verbalized",
        "env.max_turns": 1,
        "env.actions_per_turn": 6,
        "rollout.tokens_per_turn": 320,
    },
}


def rival(name: str) -> RunConfig:
    return load_config(RIVALS / f"{name}.yaml", [])


def changes(before: dict[str, Any], after: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted paths whose values differ -> the new ones; members of unions as a whole, samplers by name."""
    found: dict[str, Any] = {}
    for key, value in after.items():
        old = before[key]
        if isinstance(value, dict) and value.get("name") == old.get("name"):
            found |= changes(old, value, f"{path}{key}.")
        elif key == "sampler":
            found["sampler.name"] = value["name"]
        elif value != old:
            found[path + key] = value
    return found


def test_every_rival_is_described_here() -> None:
    assert {path.stem for path in RIVALS.glob("*.yaml")} == {*CHANGES}


@pytest.mark.parametrize("name", CHANGES)
def test_a_rival_differs_from_plain_grpo_in_its_method_alone(name: str) -> None:
    assert changes(PLAIN.model_dump(), rival(name).model_dump()) == CHANGES[name]


@pytest.mark.parametrize("name", CHANGES)
def test_a_rival_names_its_paper(name: str) -> None:
    comments = [line for line in (RIVALS / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert re.search(r"arXiv \d{4}\.\d{5}", " ".join(comments))


def test_what_plain_grpo_shares_with_dapo() -> None:
    """Dynamic sampling and the mean over tokens are defaults: DAPO's file says them all the same."""
    dapo = rival("dapo").grpo
    assert (dapo.drop_zero_signal, dapo.max_refill, dapo.normalizer, dapo.clip_low) == (True, 4, "token", 0.2)


def test_the_sizes_of_the_papers() -> None:
    tree, dde = rival("tree").sampler, rival("dde").sampler
    assert tree.name == "tree"
    assert (tree.trees, tree.rounds, tree.forks, tree.branches) == (6, 1, 2, 2)
    assert dde.name == "dde"
    assert (dde.root.name, dde.branches, dde.rule, dde.gamma) == ("parallel", 8, "learned", 2.0)
    assert rival("dde").grpo.streams.branch.weight == 1


def test_verbalized_play_has_as_many_moves_as_play_in_turns() -> None:
    """Lakes are drawn so that they can be crossed in so many moves: both draw the same ones."""
    assert rival("verbalized").env.action_limit == PLAIN.env.action_limit
