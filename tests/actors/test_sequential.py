"""Lists of solutions by hand: what each is sampled behind, which repeat, and which segments earn what."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from envs.codec import encode_group
from envs.trajectory import Credit, GroupStats, Role, Row, Stream, Verdict
from learner.rows import training_rows
from tests.actors.sequential_groups import AGAIN, ASKED, LISTED, OPENED, REPEATED, sample
from tests.builders import Said, Scene, ScriptedEnv, token_ids_of

# --- one conversation ------------------------------------------------------------------------------------------------


async def test_each_solution_is_sampled_behind_those_before(scene: Scene) -> None:
    sampled = await sample(scene, LISTED)
    assert [r.context for r in sampled.policy.requests] == [
        f"{OPENED}{ASKED}",
        f"{OPENED}{ASKED}win 1{AGAIN}",
        f"{OPENED}{ASKED}win 1{AGAIN}lose 0{AGAIN}",
    ]
    for trajectory, request in zip(sampled.group.trajectories, sampled.policy.requests, strict=True):
        assert token_ids_of(trajectory.segments[:-1]) == request.context_ids.tolist()


async def test_a_list_is_one_row_with_a_credit_for_each_solution(scene: Scene) -> None:
    sampled = await sample(scene, LISTED)
    group = sampled.group
    assert (group.sampler, sampled.lineage) == ("sequential", [(None, None), (0, 2), (1, 4)])
    assert [(t.verdict, t.reward, t.answer) for t in group.trajectories] == [
        *((Verdict.SOLVED, 1.0, "win 1"), (Verdict.WRONG, 0.0, "lose 0"), (Verdict.WRONG, 0.25, "lose 0.25")),
    ]
    assert [s.role for s in group.trajectories[2].segments] == [
        *(Role.PROMPT, Role.ANSWER, Role.OBSERVATION, Role.ANSWER, Role.OBSERVATION, Role.ANSWER),
    ]
    assert group.rows == (
        Row(
            2,
            1,
            (
                Credit(1, 2, Stream.SOLUTION, "list/0", 1.0),
                Credit(3, 4, Stream.SOLUTION, "list/0", 0.0),
                Credit(5, 6, Stream.SOLUTION, "list/0", 0.25),
            ),
        ),
    )
    assert sampled.trained() == [sampled.said("win 1", "lose 0", "lose 0.25")]
    assert group.stats == GroupStats(env_steps=3)


async def test_all_turns_of_a_solution_are_its_own(scene: Scene) -> None:
    said: dict[str, Said] = {
        "list/0/solution/0/0/1": "earn 0.5",
        "list/0/solution/0/0/3": "win 1",
        "list/0/solution/1/0/1": "earn 0.25",
        "list/0/solution/1/0/3": "lose 0",
    }
    sampled = await sample(scene, said, solutions=2)
    assert sampled.lineage == [(None, None), (0, 4)]
    assert [(c.first, c.last, c.reward) for c in sampled.group.rows[0].credits] == [(1, 4, 1.5), (5, 8, 0.25)]
    assert sampled.trained() == [sampled.said("earn 0.5", "win 1", "earn 0.25", "lose 0")]


async def test_no_room_for_another_solution_ends_the_list(scene: Scene) -> None:
    sampled = await sample(scene, {**LISTED, "list/0/solution/1/0/1": None})
    assert len(sampled.group.trajectories) == 1
    assert (sampled.rows, sampled.rewards) == ([(0, 1, None)], [[1.0]])


async def test_no_room_for_any_solution_leaves_an_empty_group(scene: Scene) -> None:
    sampled = await sample(scene, {})
    assert (sampled.group.trajectories, sampled.group.rows) == ((), ())


async def test_the_same_ticket_gives_the_same_group(scene: Scene) -> None:
    one, two = [await sample(scene, LISTED, train_on="both") for _ in range(2)]
    assert encode_group(one.group) == encode_group(two.group)


# --- repeats ---------------------------------------------------------------------------------------------------------


async def test_a_repeat_is_punished_where_it_stands(scene: Scene) -> None:
    sampled = await sample(scene, REPEATED, rejected_reward=-0.5)
    assert (sampled.rows, sampled.rewards) == ([(2, 1, None)], [[1.0, -0.5, 0.25]])
    assert sampled.group.trajectories[1].reward == 1.0
    assert sampled.group.stats == GroupStats(duplicate_answers=1, env_steps=3)


async def test_a_kept_repeat_earns_what_it_earns(scene: Scene) -> None:
    sampled = await sample(scene, REPEATED, duplicates="keep")
    assert sampled.rewards == [[1.0, 1.0, 0.25]]
    assert sampled.group.stats == GroupStats(duplicate_answers=1, env_steps=3)


async def test_a_repeat_is_taken_back_and_sampled_again(scene: Scene) -> None:
    sampled = await sample(scene, {**REPEATED, "list/0/solution/1/1/1": "lose 0"}, duplicates="resample")
    assert [t.answer for t in sampled.group.trajectories] == ["win 1", "win 1", "lose 0", "lose 0.25"]
    assert sampled.lineage == [(None, None), (0, 2), (0, 2), (2, 4)]
    assert sampled.policy.requests[1].context_ids.tolist() == sampled.policy.requests[2].context_ids.tolist()
    assert sampled.policy.requests[3].context == f"{OPENED}{ASKED}win 1{AGAIN}lose 0{AGAIN}"
    assert (sampled.rows, sampled.rewards) == ([(3, 1, None), (1, 3, None)], [[1.0, 0.0, 0.25], [-1.0]])
    assert sampled.trained() == [sampled.said("win 1", "lose 0", "lose 0.25"), sampled.said("win 1")]
    assert sampled.group.stats == GroupStats(duplicate_answers=1, env_steps=4)


async def test_resampling_ends_after_its_bound_with_the_last_try_punished(scene: Scene) -> None:
    tries: dict[str, Said] = {**REPEATED, "list/0/solution/1/1/1": "win 1", "list/0/solution/1/2/1": "win 1"}
    sampled = await sample(scene, tries, duplicates="resample", max_resamples=2)
    assert sampled.lineage == [(None, None), (0, 2), (0, 2), (0, 2), (3, 4)]
    assert sampled.rewards == [[1.0, -1.0, 0.25], [-1.0], [-1.0]]
    assert [row[0] for row in sampled.rows] == [4, 1, 2]
    assert sampled.group.stats == GroupStats(duplicate_answers=3, env_steps=5)


@pytest.mark.parametrize("duplicates", ["penalty", "keep"])
async def test_what_says_nothing_is_rejected_and_no_repeat(scene: Scene, duplicates: str) -> None:
    """Else a policy learns to say nothing, which cannot repeat anything."""
    said = {"list/0/solution/0/0/1": "", "list/0/solution/1/0/1": "", "list/0/solution/2/0/1": "win 1"}
    sampled = await sample(scene, said, solutions=3, duplicates=duplicates)
    assert len(sampled.group.trajectories) == 3
    assert sampled.group.stats.duplicate_answers == 0
    assert sampled.rewards[0] == [-1.0, -1.0, 1.0]


async def test_what_says_nothing_is_sampled_again(scene: Scene) -> None:
    said = {"list/0/solution/0/0/1": "", "list/0/solution/0/1/1": "win 1", "list/0/solution/1/0/1": "lose 0"}
    sampled = await sample(scene, said, solutions=2, duplicates="resample")
    assert sorted(reward for row in sampled.rewards for reward in row) == [-1.0, 0.0, 1.0]


# second solution -> for whom it repeats "win 1"
REPEATS = {
    "win 1": {"environment", "normalised", "exact"},
    "WIN  1": {"environment", "normalised"},
    "well, win 1": {"environment"},
    "win 2": set[str](),
}


class LastWordsCount(ScriptedEnv):
    """`well, WIN 1` is `win 1`."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return super().step(" ".join(action.lower().split()[-2:]))


@pytest.mark.parametrize(
    ("second", "same_as", "history"), product(REPEATS, ("environment", "normalised", "exact"), ("tokens", "text"))
)
async def test_a_repeat_is_what_duplicate_of_says(scene: Scene, second: str, same_as: str, history: str) -> None:
    said: dict[str, Said] = {"list/0/solution/0/0/1": "win 1", "list/0/solution/1/0/1": second}
    sampled = await sample(
        scene, said, solutions=2, make_env=LastWordsCount, duplicate_of=same_as, rejected_reward=-0.5, history=history
    )
    repeated = same_as in REPEATS[second]
    assert sampled.group.stats.duplicate_answers == repeated
    rewards = [reward for row in sampled.rewards for reward in row]
    assert rewards == [1.0, -0.5 if repeated else sampled.group.trajectories[1].reward]


# --- failures --------------------------------------------------------------------------------------------------------


async def test_a_failed_solution_stays_in_the_list_and_in_no_credit(scene: Scene) -> None:
    sampled = await sample(scene, {**LISTED, "list/0/solution/1/0/1": "raise"})
    assert [t.verdict for t in sampled.group.trajectories] == [Verdict.SOLVED, Verdict.FAILED, Verdict.WRONG]
    assert sampled.policy.requests[2].context == f"{OPENED}{ASKED}win 1{AGAIN}raise{AGAIN}"
    assert sampled.lineage == [(None, None), (0, 2), (1, 4)]
    assert sampled.rows == [(2, 1, None)]
    assert [(c.first, c.last, c.reward) for c in sampled.group.rows[0].credits] == [(1, 2, 1.0), (5, 6, 0.25)]
    assert sampled.trained() == [sampled.said("win 1", "lose 0.25")]


async def test_a_list_that_ends_with_a_failure_is_the_row_of_the_last_solution_before(scene: Scene) -> None:
    sampled = await sample(scene, {**LISTED, "list/0/solution/2/0/1": "raise"}, train_on="both")
    assert sampled.rows == [(1, 1, None), (1, 3, sampled.plain)]
    assert sampled.rewards == [[1.0, 0.0], [0.0]]


async def test_a_list_of_failures_has_no_rows(scene: Scene) -> None:
    failing: dict[str, Said] = dict.fromkeys(LISTED, "raise")
    for history in ("tokens", "text"):
        assert (await sample(scene, failing, history=history, train_on="both")).group.rows == ()


class BreaksWhenCut(ScriptedEnv):
    def cut(self) -> float:
        raise OSError("no way back")


@pytest.mark.parametrize("history", ["tokens", "text"])
async def test_an_episode_that_fails_before_its_first_answer_leaves_a_gap_in_the_list(
    scene: Scene, history: str
) -> None:
    said = {**LISTED, "list/0/solution/0/0/1": None}
    sampled = await sample(scene, said, make_env=BreaksWhenCut, history=history, train_on="both")
    first, *others = sampled.group.trajectories
    assert (first.verdict, [s.role for s in first.segments]) == (Verdict.FAILED, [Role.PROMPT])
    assert [t.answer for t in others] == ["lose 0", "lose 0.25"]
    assert [r.context for r in sampled.policy.requests[:2]] == [f"{OPENED}{ASKED}"] * 2
    assert sampled.rewards == ([[0.0, 0.25], [0.25]] if history == "tokens" else [[0.0], [0.25], [0.25]])


async def test_an_episode_that_fails_between_two_answers_ends_with_the_first(scene: Scene) -> None:
    """Its open turn is not shown to the next solution."""
    said: dict[str, Said] = {
        "list/0/solution/0/0/1": "earn 0.5",
        "list/0/solution/0/0/3": None,
        "list/0/solution/1/0/1": "win 1",
    }
    sampled = await sample(scene, said, solutions=2, make_env=BreaksWhenCut)
    assert [t.verdict for t in sampled.group.trajectories] == [Verdict.FAILED, Verdict.SOLVED]
    assert sampled.policy.requests[2].context == f"{OPENED}{ASKED}earn 0.5{AGAIN}"
    assert sampled.lineage == [(None, None), (0, 2)]
    assert [(c.first, c.last, c.reward) for c in sampled.group.rows[0].credits] == [(3, 4, 1.0)]


# --- told as text, and the plain prompt ------------------------------------------------------------------------------


async def test_told_as_text_each_solution_answers_a_prompt_of_its_own(scene: Scene) -> None:
    sampled = await sample(scene, LISTED, history="text")
    assert [r.context for r in sampled.policy.requests] == [
        f"{OPENED}{ASKED}",
        f"{OPENED}\nTried: win 1\nAnother one.{ASKED}",
        f"{OPENED}\nTried: win 1; lose 0\nAnother one.{ASKED}",
    ]
    assert sampled.lineage == [(None, None)] * 3
    assert (sampled.rows, sampled.rewards) == ([(k, 1, None) for k in range(3)], [[1.0], [0.0], [0.25]])
    assert {credit.baseline for row in sampled.group.rows for credit in row.credits} == {"list/0"}
    assert sampled.trained() == [sampled.said(words) for words in ("win 1", "lose 0", "lose 0.25")]


async def test_told_as_text_a_repeat_taken_back_is_not_told(scene: Scene) -> None:
    sampled = await sample(
        scene, {**REPEATED, "list/0/solution/1/1/1": "lose 0"}, duplicates="resample", history="text"
    )
    assert sampled.policy.requests[3].context == f"{OPENED}\nTried: win 1; lose 0\nAnother one.{ASKED}"
    assert (sampled.rows, sampled.rewards) == ([(k, 1, None) for k in (0, 2, 3, 1)], [[1.0], [0.0], [0.25], [-1.0]])


@pytest.mark.parametrize(("history", "first"), [("tokens", (1, 3, 5)), ("text", (1, 1, 1))])
async def test_plain_trains_every_solution_under_the_plain_prompt(
    scene: Scene, history: str, first: tuple[int, int, int]
) -> None:
    """The first was sampled there: it keeps its context and its log-probs. Otherwise only the answers are left."""
    sampled = await sample(scene, REPEATED, history=history, train_on="plain")
    contexts = [None, sampled.plain, sampled.plain]
    assert sampled.rows == [(k, first[k], contexts[k]) for k in range(3)]
    assert sampled.rewards == [[1.0], [-1.0], [0.25]]
    assert {credit.baseline for row in sampled.group.rows for credit in row.credits} == {"plain"}
    assert sampled.trained() == [sampled.said(words) for words in ("win 1", "win 1", "lose 0.25")]


@pytest.mark.parametrize("history", ["tokens", "text"])
async def test_both_trains_the_first_once_and_the_others_twice(scene: Scene, history: str) -> None:
    sampled = await sample(scene, LISTED, history=history, train_on="both")
    plain = [row for row in sampled.group.rows if row.credits[0].baseline == "plain"]
    assert [(row.trajectory, row.credits[0].reward) for row in plain] == [(1, 0.0), (2, 0.25)]
    assert all(row.context_ids is not None and row.context_ids.tolist() == sampled.plain for row in plain)
    guided = [credit for row in sampled.group.rows for credit in row.credits if credit.baseline == "list/0"]
    assert [credit.reward for credit in guided] == [1.0, 0.0, 0.25]


async def test_under_plain_repeats_taken_back_are_on_record_and_not_trained(scene: Scene) -> None:
    said: dict[str, Said] = {**REPEATED, "list/0/solution/1/1/1": "lose 0"}
    sampled = await sample(scene, said, duplicates="resample", train_on="plain")
    assert len(sampled.group.trajectories) == 4
    assert [row[0] for row in sampled.rows] == [0, 2, 3]


async def test_advantages_compare_the_solutions_of_one_list(scene: Scene) -> None:
    """Rewards 1, 0, 0.25: the mean is 5/12, the standard deviation sqrt(26)/12."""
    sampled = await sample(scene, LISTED)
    [row] = training_rows([sampled.group], sampled.rollout._shared.config)
    expected = np.array([7, -5, -2]) / np.sqrt(26)
    ends = np.cumsum([len(sampled.said(words)) for words in ("win 1", "lose 0", "lose 0.25")])
    np.testing.assert_allclose(row.advantages[ends - 1], expected, rtol=1e-5)
    assert row.sequences[ends - 1].tolist() == [0, 1, 2]
