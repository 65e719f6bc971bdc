"""Several lists of a prompt, where a list ends, and what counts as saying nothing or the same."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from actors.samplers.build import build_sampler
from configs.samplers import SequentialSettings
from envs.base import Outcome
from envs.trajectory import Verdict
from tests.actors.sequential_groups import Lists, sample
from tests.builders import Said, Scene, ScriptedEnv, ScriptedPolicy

# --- several lists of a prompt ---------------------------------------------------------------------------------------

TWO_LISTS: dict[str, Said] = {
    "list/0/solution/0/0/1": "win 1",
    "list/0/solution/1/0/1": "win 1",
    "list/1/solution/0/0/1": "lose 0",
    "list/1/solution/1/0/1": "win 1",
}


def placed(sampled: Lists) -> list[tuple[int, str, float]]:
    return [(row.trajectory, c.baseline, c.reward) for row in sampled.group.rows for c in row.credits]


async def test_lists_of_a_prompt_know_nothing_of_each_other(scene: Scene) -> None:
    """A solution of one list is no repeat in another; parents stay inside their list."""
    sampled = await sample(scene, TWO_LISTS, solutions=2, lists=2)
    assert placed(sampled) == [(1, "list/0", 1.0), (1, "list/0", -1.0), (3, "list/1", 0.0), (3, "list/1", 1.0)]
    assert [t.parent for t in sampled.group.trajectories] == [None, 0, None, 2]
    assert sampled.group.stats.duplicate_answers == 1


async def test_solutions_are_compared_with_those_of_their_place(scene: Scene) -> None:
    sampled = await sample(scene, TWO_LISTS, solutions=2, lists=2, baseline="position")
    assert placed(sampled) == [(1, "place/0", 1.0), (1, "place/1", -1.0), (3, "place/0", 0.0), (3, "place/1", 1.0)]


def test_places_take_several_lists() -> None:
    with pytest.raises(ValidationError, match=r"lists \(1\) must be at least 2"):
        SequentialSettings(baseline="position")


# --- room, and what has no answer ------------------------------------------------------------------------------------


async def test_a_list_ends_before_a_solution_that_only_the_context_would_cut(scene: Scene) -> None:
    """The prompt has 73 tokens, a solution and the next request 80: a third would have 17 of 20 tokens left."""
    policy = ScriptedPolicy(lambda _: "win 1")
    opened = len((await scene.rollout(policy)).opening())
    rollout = await scene.rollout(policy, rollout={"tokens_per_turn": 20}, model={"max_model_len": opened + 130})
    group = await build_sampler(SequentialSettings(solutions=8)).sample_group(rollout)
    longest = max(len(request.context_ids) for request in policy.requests)
    assert 1 < len(group.trajectories) < 8
    assert longest + 20 <= opened + 130
    assert {t.verdict for t in group.trajectories} == {Verdict.SOLVED}


async def test_different_words_that_do_nothing_are_no_repeats(scene: Scene) -> None:
    class NothingDone(ScriptedEnv):
        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            outcome = Outcome(Verdict.WRONG, "")
            return "Illegal.", -0.5, True, False, {"outcome": outcome}

    said = {f"list/0/solution/{i}/0/1": words for i, words in enumerate(["go north", "go south", "go north"])}
    sampled = await sample(scene, said, solutions=3, make_env=NothingDone)
    assert sampled.rewards[0] == [-0.5, -0.5, -1.0]
    assert sampled.group.stats.duplicate_answers == 1


async def test_lists_that_are_all_alike_are_compared_inside_themselves(scene: Scene) -> None:
    """A dead policy's: by place every reward is the same, inside a list the repeat is worse than what it repeats."""
    said: dict[str, Said] = {f"list/{i}/solution/{k}/0/1": "win 1" for i in range(2) for k in range(2)}
    sampled = await sample(scene, said, solutions=2, lists=2, baseline="position")
    assert placed(sampled) == [(1, "list/0", 1.0), (1, "list/0", -1.0), (3, "list/1", 1.0), (3, "list/1", -1.0)]
    assert sampled.group.has_signal


async def test_what_an_unreadable_solution_costs_comes_on_top(scene: Scene) -> None:
    class Strict(ScriptedEnv):
        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            text, reward, *rest = super().step(action)
            return (text, reward if action else -0.25, *rest)  # type: ignore[return-value]

    said = {"list/0/solution/0/0/1": "", "list/0/solution/1/0/1": "lose 0", "list/0/solution/2/0/1": "lose 0"}
    sampled = await sample(scene, said, solutions=3, make_env=lambda: Strict(max_turns=1))
    assert sampled.rewards[0] == [-1.25, 0.0, -1.0]
