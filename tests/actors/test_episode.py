"""Episodes taken up again: cut inside an answer, and gone on with from any turn as if nothing had come behind."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actors.episode import Episode, Turn
from actors.rollout import Rollout
from envs.trajectory import Role, Segment, Trajectory, Verdict
from tests.builders import Said, Scene, ScriptedPolicy, answer, observation, plan, prompt, token_ids_of
from tests.envs.cases import env_of

STATE = b"as it stands"


def two_turns() -> Episode:
    segments = (prompt(1, 2), answer(10, 11, 12, 13), observation(4), answer(20, 21))
    turns = (Turn(1, STATE, 0.0), Turn(3, STATE, 0.5))
    return Episode(Trajectory(segments, Verdict.WRONG, 0.5), turns)


# --- cut -------------------------------------------------------------------------------------------------------------


def test_a_cut_answer_is_the_same_tokens_in_two_segments() -> None:
    whole = two_turns()
    whole.trajectory.segments[1].behaviour_logprobs[:] = [-1, -2, -3, -4]
    whole.trajectory.segments[1].policy_versions[:] = [3, 3, 4, 4]
    cut = whole.cut(1, 3)
    segments = cut.trajectory.segments
    assert token_ids_of(segments) == token_ids_of(whole.trajectory.segments)
    assert [s.role for s in segments] == [Role.PROMPT, Role.ANSWER, Role.ANSWER, Role.OBSERVATION, Role.ANSWER]
    assert [s.token_ids.tolist() for s in segments[1:3]] == [[10, 11, 12], [13]]
    assert [s.behaviour_logprobs.tolist() for s in segments[1:3]] == [[-1, -2, -3], [-4]]
    assert [s.policy_versions.tolist() for s in segments[1:3]] == [[3, 3, 4], [4]]
    assert [turn.segment for turn in cut.turns] == [1, 4]
    assert cut.trajectory.sampled_tokens == whole.trajectory.sampled_tokens
    assert len(whole.trajectory.segments) == 4


def test_only_the_second_part_was_cut_at_the_limit() -> None:
    said = answer(10, 11, 12)
    limited = Segment(said.role, said.token_ids, said.behaviour_logprobs, said.policy_versions, ended=False)
    episode = Episode(Trajectory((prompt(1), limited), Verdict.WRONG, 0.0), (Turn(1, STATE, 0.0),))
    assert [s.ended for s in episode.cut(1, 1).trajectory.segments] == [True, True, False]


@pytest.mark.parametrize("offset", [-1, 0, 4, 5])
def test_a_cut_leaves_something_on_both_sides(offset: int) -> None:
    with pytest.raises(ValueError, match=f"an answer of 4 tokens cannot be cut at {offset}"):
        two_turns().cut(1, offset)


def test_the_turn_of_a_pivot_is_the_one_under_way() -> None:
    whole = two_turns()
    assert [whole.turn_of(pivot).segment for pivot in (1, 2, 3)] == [1, 1, 3]
    cut = whole.cut(1, 2)
    assert [cut.turn_of(pivot).segment for pivot in (1, 2, 3, 4)] == [1, 1, 1, 4]


# --- branch, in an environment by script -----------------------------------------------------------------------------


async def failed(scene: Scene, said: dict[str, Said]) -> tuple[Rollout, ScriptedPolicy, Episode]:
    """An episode that earns 0.25, then 0.5, and is lost."""
    first = {"solution/1": "earn 0.25", "solution/3": "earn 0.5", "solution/5": "lose 0"}
    policy = ScriptedPolicy(lambda _: "lose 0", plan({**first, **said}))
    rollout = await scene.rollout(policy)
    rollout.keep_turns = True
    return rollout, policy, await rollout.play(rollout.opening(), "solution", sketch=2)


async def test_an_episode_keeps_its_turns_when_asked(scene: Scene) -> None:
    rollout, _, episode = await failed(scene, {})
    assert [(turn.segment, turn.reward, pickle.loads(turn.state).state) for turn in episode.turns] == [
        (1, 0.0, ()),
        (3, 0.25, ("earn 0.25",)),
        (5, 0.75, ("earn 0.25", "earn 0.5")),
    ]
    rollout.keep_turns = False
    assert (await rollout.play(rollout.opening(), "another")).turns == ()


async def test_a_branch_goes_on_where_the_environment_stood(scene: Scene) -> None:
    rollout, policy, parent = await failed(scene, {"b/3": "earn 2", "b/5": "win 1"})
    branch = (await rollout.branch(parent, 4, 3, "b")).trajectory
    assert (branch.parent, branch.pivot, branch.sketch) == (4, 3, 2)
    assert (branch.verdict, branch.reward, branch.answer) == (Verdict.SOLVED, 3.25, "earn 0.25|earn 2|win 1")
    assert all(a is b for a, b in zip(branch.segments[:3], parent.trajectory.segments, strict=False))
    assert policy.requests[3].context_ids.tolist() == token_ids_of(parent.trajectory.segments[:3])
    assert branch.sampled_tokens == len(policy.encode("earn 2")) + len(policy.encode("win 1"))
    assert parent.trajectory.answer == "earn 0.25|earn 0.5|lose 0"  # as it was
    assert rollout.env_steps == 3 + 2


async def test_a_branch_from_the_root_is_another_solution(scene: Scene) -> None:
    rollout, policy, parent = await failed(scene, {"b/1": "win 1"})
    branch = (await rollout.branch(parent, 0, 1, "b")).trajectory
    assert (branch.reward, branch.answer, branch.pivot) == (1.0, "win 1", 1)
    assert policy.requests[3].context_ids.tolist() == rollout.opening().tolist()


async def test_a_branch_inside_an_answer_is_judged_with_what_had_been_said(scene: Scene) -> None:
    rollout, policy, parent = await failed(scene, {"b/4": "9"})
    offset = len(policy.encode("earn 0.")) - 1
    cut = parent.cut(3, offset)
    branch = (await rollout.branch(cut, 0, 4, "b")).trajectory
    assert policy.requests[3].context_ids.tolist() == token_ids_of(cut.trajectory.segments[:4])
    assert policy.requests[3].max_tokens == 48 - offset
    assert branch.answer == "earn 0.25|earn 0.9|lose 0"
    assert branch.reward == 1.15
    roles = [s.role for s in branch.segments]
    assert roles[3:5] == [Role.ANSWER, Role.ANSWER]
    assert branch.sampled_tokens == len(policy.encode("9")) + len(policy.encode("lose 0"))


async def test_a_branch_can_be_taken_up_again_itself(scene: Scene) -> None:
    rollout, _, parent = await failed(scene, {"b/3": "earn 2", "b/5": "lose 0", "c/5": "win 1"})
    branch = await rollout.branch(parent, 0, 3, "b")
    assert [(turn.segment, turn.reward) for turn in branch.turns] == [(3, 0.25), (5, 2.25)]
    again = (await rollout.branch(branch, 1, 5, "c")).trajectory
    assert (again.answer, again.reward, again.parent) == ("earn 0.25|earn 2|win 1", 3.25, 1)


async def test_a_branch_whose_environment_fails_is_no_verdict(scene: Scene) -> None:
    rollout, _, parent = await failed(scene, {"b/3": "raise"})
    branch = (await rollout.branch(parent, 0, 3, "b")).trajectory
    assert (branch.verdict, branch.reward, branch.cause) == (Verdict.FAILED, 0.0, "scripted raised RuntimeError: boom")
    assert (branch.parent, branch.pivot) == (0, 3)


# --- branch, in real environments ------------------------------------------------------------------------------------


def by_turn(answers: list[str]) -> Callable[[str], Said]:
    """The same answers whenever asked: by the number of assistant turns in the context."""
    return lambda context: answers[context.count("<|im_start|>assistant") - 1]


@pytest.mark.parametrize("case", ["frozen_lake", "frozen_lake-slippery", "sokoban", "sokoban-two-boxes"])
async def test_a_real_episode_goes_on_exactly(scene: Scene, case: str, tmp_path: Path) -> None:
    """The same answers from any turn of an episode lead to the same tokens, reward and verdict, slips included."""
    rng = np.random.default_rng(4)
    actions = [f"<answer>{('Left', 'Up', 'Right', 'Down')[i]}</answer>" for i in rng.integers(4, size=12)]
    policy = ScriptedPolicy(by_turn(actions))

    rollout = await scene.rollout(policy, lambda: env_of(case, tmp_path))
    rollout.keep_turns = True
    whole = await rollout.play(rollout.opening(), "solution/0")
    assert len(whole.turns) > 2
    for turn in whole.turns:
        branch = (await rollout.branch(whole, 0, turn.segment, "b")).trajectory
        assert token_ids_of(branch.segments) == token_ids_of(whole.trajectory.segments)
        assert (branch.verdict, branch.answer) == (whole.trajectory.verdict, whole.trajectory.answer)
        assert branch.reward == pytest.approx(whole.trajectory.reward, abs=1e-12)
