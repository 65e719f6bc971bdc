"""TreeRL's groups by hand: who forks where, what is sampled there, which tokens are trained by which advantage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest

from actors.engine import Completion
from actors.samplers.build import build_sampler
from configs.samplers import TreeSettings
from envs.codec import decode_group, encode_group
from envs.trajectory import GroupStats, Ints, Role, Stream, Trajectory, Verdict
from tests.builders import Said, Sampled, Scene, ScriptedPolicy, plan, token_ids_of


class SurprisedPolicy(ScriptedPolicy):
    """A scripted policy whose signs have the log-probs told; all others -0.25."""

    surprises: Mapping[str, float] = {}

    async def sample(self, context_ids: Ints, max_tokens: int, seed: int) -> Completion | None:
        completion = await super().sample(context_ids, max_tokens, seed)
        if completion is None:
            return None
        table = {self.encode(sign)[0]: logprob for sign, logprob in self.surprises.items()}
        logprobs = [table.get(token, -0.25) for token in completion.token_ids.tolist()]
        return replace(completion, behaviour_logprobs=np.array(logprobs, np.float32))


class Grown(Sampled):
    def words(self, trajectory: Trajectory) -> list[str]:
        """What the segments behind the prompt say; observations in brackets."""
        chat = self.rollout.chat
        texts = [(s.role, str(chat._tokenizer.decode(s.token_ids.tolist()))) for s in trajectory.segments[1:]]
        return ["[]" if role is Role.OBSERVATION else text.replace("<|im_end|>", ".") for role, text in texts]

    def credits(self) -> list[tuple[int, int, int, float, float | None]]:
        """(trajectory, first, last, value, advantage) of each credit."""
        return [(r.trajectory, c.first, c.last, c.reward, c.advantage) for r in self.group.rows for c in r.credits]


async def sample(scene: Scene, surprises: Mapping[str, float], said: Mapping[str, Said], **settings: Any) -> Grown:
    policy = SurprisedPolicy(lambda _: None, plan(said))
    policy.surprises = surprises
    rollout = await scene.rollout(policy)
    group = await build_sampler(TreeSettings(**settings)).sample_group(rollout)
    assert encode_group(decode_group(encode_group(group))) == encode_group(group)
    return Grown(group, rollout, policy)


async def test_a_tree_forks_inside_an_answer(scene: Scene) -> None:
    sampled = await sample(
        scene,
        {"1": -4.0},
        {
            "tree/0/1": "win 1", "fork/0/0/0/0/2": "0.5", "fork/0/0/0/1/2": "0",
            "tree/1/1": "lose 1", "fork/1/0/0/0/2": "0.25", "fork/1/0/0/1/2": "0.25",
        },
        trees=2, forks=1, branches=2,
    )  # fmt: skip
    group = sampled.group
    assert [sampled.words(t) for t in group.trajectories] == [
        *(["win ", "1."], ["win ", "0.5."], ["win ", "0."]),
        *(["lose ", "1."], ["lose ", "0.25."], ["lose ", "0.25."]),
    ]
    assert [(t.reward, t.parent, t.pivot) for t in group.trajectories] == [
        *((1.0, None, None), (0.5, 0, 2), (0.0, 0, 2), (1.0, None, None), (0.25, 3, 2), (0.25, 3, 2)),
    ]
    # V_root = 3 / 6, as V of "win " and of "lose ".
    assert sampled.credits() == [
        *((0, 1, 2, 0.5, 0.0), (0, 2, 3, 1.0, 1.0), (1, 2, 3, 0.5, 0.0), (2, 2, 3, 0.0, -1.0)),
        *((3, 1, 2, 0.5, 0.0), (3, 2, 3, 1.0, 1.0), (4, 2, 3, 0.25, -0.5), (5, 2, 3, 0.25, -0.5)),
    ]
    assert [(row.trajectory, row.first, row.context_ids) for row in group.rows] == [
        *((0, 1, None), (1, 2, None), (2, 2, None), (3, 1, None), (4, 2, None), (5, 2, None)),
    ]
    assert {c.stream for row in group.rows for c in row.credits} == {Stream.SOLUTION}
    assert (group.sampler, group.stats, group.has_signal) == ("tree", GroupStats(env_steps=6), True)


async def test_a_branch_is_sampled_behind_the_very_tokens_before_the_fork(scene: Scene) -> None:
    said: dict[str, Said] = {"tree/0/1": "win 1", "fork/0/0/0/0/2": "0.5"}
    sampled = await sample(scene, {"1": -4.0}, said, trees=1, forks=1, branches=1)
    root, branch = sampled.group.trajectories
    [first, request] = sampled.policy.requests
    assert request.context_ids.tolist() == token_ids_of(root.segments[:2]) == token_ids_of(branch.segments[:2])
    assert (first.max_tokens, request.max_tokens) == (48, 48 - len("win "))
    assert [s.ended for s in root.segments] == [True, True, True]
    assert root.segments[1].behaviour_logprobs.tolist() == [-0.25] * 4
    assert root.segments[2].behaviour_logprobs.tolist() == [-4.0, -0.25]
    assert sampled.group.sampled_tokens == len("win 1.") + len("0.5.")


async def test_two_rounds_of_a_game_of_several_turns(scene: Scene) -> None:
    sampled = await sample(
        scene,
        # Round one forks before "1" and before "win"; round two before the "0" of "lose 0" and inside the first "earn".
        {"1": -9.0, "w": -8.0, "0": -5.0, "n": -4.0},
        {
            "tree/0/1": "earn 1", "tree/0/3": "win 2",
            "fork/0/0/0/0/2": "0.5", "fork/0/0/0/0/4": "lose 0", "fork/0/0/1/0/4": "lose 3",
            "fork/0/1/0/0/6": "0.25", "fork/0/1/1/0/2": "n 2", "fork/0/1/1/0/4": "lose 1",
        },
        trees=1, rounds=2, forks=2, branches=1,
    )  # fmt: skip
    group = sampled.group
    assert [sampled.words(t) for t in group.trajectories] == [
        ["ear", "n ", "1.", "[]", "win 2."],
        ["ear", "n ", "0.5.", "[]", "lose ", "0."],
        ["ear", "n ", "1.", "[]", "lose 3."],
        ["ear", "n ", "0.5.", "[]", "lose ", "0.25."],
        ["ear", "n 2.", "[]", "lose 1."],
    ]
    assert [(t.parent, t.pivot) for t in group.trajectories] == [(None, None), (0, 3), (0, 5), (1, 6), (0, 2)]
    assert [t.reward for t in group.trajectories] == [3.0, 0.5, 4.0, 0.75, 3.0]
    assert group.trajectories[3].answer == "earn 0.5|lose 0.25"
    assert group.stats.env_steps == 2 + 2 + 1 + 1 + 2
    # What is left of an answer that had begun: behind "earn ", "lose " and "ear".
    assert sorted(r.max_tokens for r in sampled.policy.requests) == [43, 43, 45, *[48] * 5]
    # V_root = 11.25 / 5; "n " has leaves 0 to 3; "1." 0 and 2; "0.5." up to "lose " 1 and 3.
    assert [c[:4] for c in sampled.credits()] == [
        *((0, 1, 2, 2.25), (0, 2, 3, 2.0625), (0, 3, 5, 3.5), (0, 5, 6, 3.0)),
        *((1, 3, 6, 0.625), (1, 6, 7, 0.5), (2, 5, 6, 4.0), (3, 6, 7, 0.75), (4, 2, 5, 3.0)),
    ]
    assert [c[4] for c in sampled.credits()] == pytest.approx(
        [
            *(0, (-0.1875 - 0.1875) / 2, (1.25 + 1.4375) / sqrt(2), 0.75 - 0.5),
            *((-1.625 - 1.4375) / sqrt(2), -1.75 - 0.125, 1.75 + 0.5, -1.5 + 0.125, 0.75 + 0.75),
        ]
    )


async def test_failed_branches_are_in_no_row_and_no_value(scene: Scene) -> None:
    said: dict[str, Said] = {
        "tree/0/1": "win 1",
        "fork/0/0/0/0/1": "raise",
        "fork/0/0/0/1/1": "lose 0",
        "fork/0/0/0/2/1": "break",
    }
    sampled = await sample(scene, {"w": -4.0}, said, trees=1, forks=1, branches=3)
    failed = [t.verdict is Verdict.FAILED for t in sampled.group.trajectories]
    assert failed == [False, True, False, True]
    assert [(t.parent, t.pivot) for t in sampled.group.trajectories[1:]] == [(0, 1)] * 3
    assert sampled.credits() == [(0, 1, 2, 1.0, 1.0), (2, 1, 2, 0.0, -1.0)]


async def test_a_tree_whose_trunk_failed_is_not_grown(scene: Scene) -> None:
    said: dict[str, Said] = {"tree/0/1": "raise", "tree/1/1": "win 1", "fork/1/0/0/0/2": "2"}
    sampled = await sample(scene, {"1": -4.0}, said, trees=2, forks=1, branches=1)
    assert [t.parent for t in sampled.group.trajectories] == [None, None, 1]
    assert [t.cause for t in sampled.group.trajectories] == ["scripted raised RuntimeError: boom", "", ""]
    assert [row.trajectory for row in sampled.group.rows] == [1, 2]
    assert [c[3:] for c in sampled.credits()] == [(1.5, 0.0), (1.0, -1.0), (2.0, 1.0)]


async def test_a_group_that_failed_as_a_whole_has_no_rows(scene: Scene) -> None:
    sampled = await sample(scene, {}, {"tree/0/1": "raise", "tree/1/1": "raise"}, trees=2)
    assert (len(sampled.group.trajectories), sampled.group.rows) == (2, ())


async def test_leaves_and_seeds(scene: Scene) -> None:
    """trees * (1 + forks * branches) leaves in one round, none of them sampled with another's seed."""
    policies = [ScriptedPolicy(lambda _: "win 1") for _ in range(2)]
    groups = [
        await build_sampler(TreeSettings(trees=3, forks=2, branches=2)).sample_group(await scene.rollout(policy))
        for policy in policies
    ]
    assert len(groups[0].trajectories) == 3 * (1 + 2 * 2)
    seeds = [sorted(r.seed for r in policy.requests) for policy in policies]
    assert len({*seeds[0]}) == len(seeds[0]) == groups[0].stats.env_steps
    assert seeds[0] == seeds[1]
    assert encode_group(groups[0]) == encode_group(groups[1])


async def test_without_a_round_trees_are_independent_solutions(scene: Scene) -> None:
    said: dict[str, Said] = {"tree/0/1": "win 1", "tree/1/1": "lose 0"}
    sampled = await sample(scene, {}, said, trees=2, rounds=0)
    assert sampled.credits() == [(0, 1, 2, 1.0, 1.0), (1, 1, 2, 0.0, -1.0)]
