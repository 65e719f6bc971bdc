"""SESA's groups by hand: three sketches or two, what came of each, and which rows, baselines and credits follow."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from envs.codec import encode_group
from envs.trajectory import Credit, GroupStats, Role, Stream, Verdict
from tests.actors.sesa_groups import SKETCHES, SOLUTIONS, context_ids, prompt_ids, sample
from tests.builders import Said, Scene, token_ids_of

# --- where the gradient goes -----------------------------------------------------------------------------------------


async def test_plain_trains_the_solutions_alone_under_the_plain_prompt(scene: Scene) -> None:
    sampled = await sample(scene, SKETCHES, SOLUTIONS, train_on="plain", plain_weight=0.5)
    group = sampled.group
    assert group.sampler == "sesa"
    assert [t.sketch for t in group.trajectories] == [None, 0, 1, 2]
    for trajectory, words in zip(group.trajectories[1:], ("plan up", "plan down", "plan left"), strict=True):
        assert prompt_ids(trajectory) == sampled.guided(*sampled.words(words))
    assert [(row.trajectory, row.first) for row in group.rows] == [(1, 1), (2, 1), (3, 1)]
    assert [context_ids(row) for row in group.rows] == [sampled.plain] * 3
    assert [row.importance_cap for row in group.rows] == [None] * 3
    assert [row.credits for row in group.rows] == [
        (Credit(1, 2, Stream.SOLUTION, "plain", reward, 0.5),) for reward in (1.0, 0.0, 0.25)
    ]
    assert group.stats == GroupStats(sketches=3, env_steps=3)


async def test_plain_hands_on_its_importance_cap_where_it_is_asked_for(scene: Scene) -> None:
    sampled = await sample(scene, SKETCHES, SOLUTIONS, plain_importance_cap=1.5)
    assert [row.importance_cap for row in sampled.group.rows] == [1.5] * 3


async def test_guided_trains_solutions_and_sketches_in_their_own_contexts(scene: Scene) -> None:
    sampled = await sample(scene, SKETCHES, SOLUTIONS, train_on="guided", guided_weight=0.5)
    rows = sampled.group.rows
    assert [(row.trajectory, row.first, row.context_ids, row.importance_cap) for row in rows] == [
        *((1, 1, None, None), (2, 1, None, None), (3, 1, None, None), (0, 1, None, None)),
    ]
    assert [row.credits for row in rows[:3]] == [
        (Credit(1, 2, Stream.SOLUTION, "guided", reward, 0.5),) for reward in (1.0, 0.0, 0.25)
    ]
    assert rows[3].credits == (
        Credit(1, 2, Stream.SKETCH, "sketches", 1.0),
        Credit(3, 4, Stream.SKETCH, "sketches", 0.0),
        Credit(5, 6, Stream.SKETCH, "sketches", 0.25),
    )


async def test_both_trains_each_solution_twice_by_the_two_weights(scene: Scene) -> None:
    sampled = await sample(scene, SKETCHES, SOLUTIONS, train_on="both", plain_weight=0.25, guided_weight=0.75)
    assert sampled.credits(Stream.SOLUTION, "plain") == [(1, 1.0, 0.25), (2, 0.0, 0.25), (3, 0.25, 0.25)]
    assert sampled.credits(Stream.SOLUTION, "guided") == [(1, 1.0, 0.75), (2, 0.0, 0.75), (3, 0.25, 0.75)]
    assert sampled.credits(Stream.SKETCH) == [(0, 1.0, 1.0), (0, 0.0, 1.0), (0, 0.25, 1.0)]
    for row in sampled.group.rows:
        assert context_ids(row) == (sampled.plain if row.credits[0].baseline == "plain" else None)
    assert len(sampled.group.rows) == 7


# --- sketches that say nothing new -----------------------------------------------------------------------------------

REPEATED: dict[str, Said] = {**SKETCHES, "sketch/1/0": "plan UP"}  # another text with the same key
UNREADABLE: dict[str, Said] = {**SKETCHES, "sketch/1/0": "no idea"}


@pytest.mark.parametrize(
    ("sketches", "stats"),
    [
        (REPEATED, GroupStats(sketches=3, duplicate_sketches=1, env_steps=3)),
        (UNREADABLE, GroupStats(sketches=3, unparsable_sketches=1, env_steps=3)),
    ],
    ids=["repeated", "unreadable"],
)
async def test_a_rejected_sketch_is_penalised_and_a_plain_solution_takes_its_place(
    scene: Scene, sketches: Mapping[str, Said], stats: GroupStats
) -> None:
    sampled = await sample(scene, sketches, SOLUTIONS, train_on="both", rejected_reward=-0.5)
    group = sampled.group
    assert group.stats == stats
    assert [t.sketch for t in group.trajectories] == [None, 0, None, 2]
    assert prompt_ids(group.trajectories[2]) == sampled.plain
    assert sampled.credits(Stream.SKETCH) == [(0, 1.0, 1.0), (0, -0.5, 1.0), (0, 0.25, 1.0)]
    assert sampled.credits(Stream.SOLUTION, "plain") == [(1, 1.0, 1.0), (2, 0.0, 1.0), (3, 0.25, 1.0)]


async def test_a_plain_solution_keeps_its_own_context(scene: Scene) -> None:
    """It was sampled under the plain prompt: replacing the context would give its log-probs up for nothing."""
    sampled = await sample(scene, REPEATED, SOLUTIONS, train_on="plain")
    assert [(row.trajectory, context_ids(row)) for row in sampled.group.rows] == [
        *((1, sampled.plain), (2, None), (3, sampled.plain)),
    ]


async def test_a_rejected_sketch_stays_in_the_conversation(scene: Scene) -> None:
    sampled = await sample(scene, REPEATED, SOLUTIONS)
    assert "assistant\nplan UP<|im_end|>" in sampled.policy.requests[2].context
    assert len(sampled.policy.requests) == 3 + 3


async def test_resampling_takes_a_rejected_sketch_back_and_tries_again(scene: Scene) -> None:
    tries: dict[str, Said] = {**REPEATED, "sketch/1/1": "no idea", "sketch/1/2": "plan down"}
    sampled = await sample(scene, tries, SOLUTIONS, duplicates="resample", max_resamples=2, train_on="guided")
    group, policy = sampled.group, sampled.policy
    listed, repeated, unreadable = group.trajectories[:3]
    assert "UP" not in policy.requests[4].context
    assert "no idea" not in policy.requests[4].context
    assert token_ids_of(listed.segments[3:4]) == policy.encode("plan down")
    for taken_back, words in ((repeated, "plan UP"), (unreadable, "no idea")):
        assert [s.role for s in taken_back.segments] == [Role.PROMPT, Role.SKETCH]
        assert prompt_ids(taken_back) == token_ids_of(listed.segments[:3])
        assert token_ids_of(taken_back.segments[1:]) == policy.encode(words)
        assert not taken_back.is_solution
    assert [t.sketch for t in group.trajectories] == [None, None, None, 0, 1, 2]
    assert [row.trajectory for row in group.rows] == [3, 4, 5, 0, 1, 2]
    assert sampled.credits(Stream.SKETCH) == [
        *((0, 1.0, 1.0), (0, 0.0, 1.0), (0, 0.25, 1.0), (1, -1.0, 1.0), (2, -1.0, 1.0)),
    ]
    for row in group.rows[-2:]:
        assert (row.first, row.context_ids, row.credits[0].first, row.credits[0].last) == (1, None, 1, 2)
    assert group.stats == GroupStats(3, duplicate_sketches=1, unparsable_sketches=1, resampled_sketches=2, env_steps=3)


async def test_resampling_ends_after_its_bound_with_the_last_try_rejected(scene: Scene) -> None:
    tries: dict[str, Said] = {**REPEATED, "sketch/1/1": "plan up", "sketch/1/2": "plan uP"}
    sampled = await sample(scene, tries, SOLUTIONS, duplicates="resample", max_resamples=2, train_on="guided")
    listed = sampled.group.trajectories[0]
    assert token_ids_of(listed.segments[3:4]) == sampled.policy.encode("plan uP")
    assert [t.sketch for t in sampled.group.trajectories] == [None, None, None, 0, None, 2]
    assert [reward for _, reward, _ in sampled.credits(Stream.SKETCH)] == [1.0, -1.0, 0.25, -1.0, -1.0]
    assert sampled.group.stats == GroupStats(3, duplicate_sketches=3, resampled_sketches=2, env_steps=3)


async def test_under_plain_tries_taken_back_are_on_record_and_not_trained(scene: Scene) -> None:
    tries: dict[str, Said] = {**REPEATED, "sketch/1/1": "plan down"}
    sampled = await sample(scene, tries, SOLUTIONS, duplicates="resample", train_on="plain")
    assert len(sampled.group.trajectories) == 5
    assert [row.trajectory for row in sampled.group.rows] == [2, 3, 4]


async def test_kept_duplicates_are_followed_like_any_other(scene: Scene) -> None:
    sampled = await sample(scene, REPEATED, SOLUTIONS, duplicates="keep", train_on="guided")
    assert [t.sketch for t in sampled.group.trajectories] == [None, 0, 1, 2]
    assert prompt_ids(sampled.group.trajectories[2]) == sampled.guided(*sampled.words("plan UP"))
    assert sampled.credits(Stream.SKETCH) == [(0, 1.0, 1.0), (0, 0.0, 1.0), (0, 0.25, 1.0)]
    assert sampled.group.stats == GroupStats(3, duplicate_sketches=1, env_steps=3)


async def test_what_cannot_be_read_is_not_kept(scene: Scene) -> None:
    sampled = await sample(scene, UNREADABLE, SOLUTIONS, duplicates="keep", train_on="guided")
    assert [t.sketch for t in sampled.group.trajectories] == [None, 0, None, 2]
    assert sampled.credits(Stream.SKETCH) == [(0, 1.0, 1.0), (0, -1.0, 1.0), (0, 0.25, 1.0)]


# --- several expansions, failures, full contexts ---------------------------------------------------------------------

TWICE: dict[str, Said] = {
    "expansion/0/0/1": "win 1",
    "expansion/0/1/1": "lose 0",
    "expansion/1/0/1": "lose 0.25",
    "expansion/1/1/1": "lose 0",
    "expansion/2/0/1": "win 1",
    "expansion/2/1/1": "win 0.5",
}


async def test_expansions_of_a_sketch_are_compared_with_each_other_and_their_mean_is_its_credit(scene: Scene) -> None:
    sampled = await sample(scene, SKETCHES, TWICE, expansions_per_sketch=2, train_on="both")
    assert [t.sketch for t in sampled.group.trajectories] == [None, 0, 0, 1, 1, 2, 2]
    assert sampled.credits(Stream.SOLUTION, "guided/0") == [(1, 1.0, 1.0), (2, 0.0, 1.0)]
    assert sampled.credits(Stream.SOLUTION, "guided/1") == [(3, 0.25, 1.0), (4, 0.0, 1.0)]
    assert sampled.credits(Stream.SOLUTION, "guided/2") == [(5, 1.0, 1.0), (6, 0.5, 1.0)]
    assert [trajectory for trajectory, _, _ in sampled.credits(Stream.SOLUTION, "plain")] == [1, 2, 3, 4, 5, 6]
    assert [reward for _, reward, _ in sampled.credits(Stream.SKETCH)] == [0.5, 0.125, 0.75]
    assert len({r.seed for r in sampled.policy.requests}) == 3 + 6


async def test_a_sketch_can_earn_the_best_of_its_expansions(scene: Scene) -> None:
    sampled = await sample(scene, SKETCHES, TWICE, expansions_per_sketch=2, train_on="guided", sketch_credit="max")
    assert [reward for _, reward, _ in sampled.credits(Stream.SKETCH)] == [1.0, 0.25, 1.0]
    assert sampled.credits(Stream.SOLUTION, "guided/0") == [(1, 1.0, 1.0), (2, 0.0, 1.0)]


async def test_plain_solutions_among_expansions_have_a_baseline_of_their_own(scene: Scene) -> None:
    sampled = await sample(scene, REPEATED, TWICE, expansions_per_sketch=2, train_on="guided")
    assert sampled.credits(Stream.SOLUTION, "guided") == [(3, 0.25, 1.0), (4, 0.0, 1.0)]
    assert sampled.baselines() == {
        *((Stream.SOLUTION, "guided/0"), (Stream.SOLUTION, "guided"), (Stream.SOLUTION, "guided/2")),
        (Stream.SKETCH, "sketches"),
    }


async def test_plain_solutions_that_are_asked_for_are_compared_with_the_guided_ones(scene: Scene) -> None:
    """On-policy in their own context; no sketch earns by them."""
    plain: dict[str, Said] = {"plain/0/1": "win 0.5", "plain/1/1": "lose 0.75"}
    sampled = await sample(scene, SKETCHES, SOLUTIONS, plain, train_on="both", plain_solutions=2)
    group = sampled.group
    assert [t.sketch for t in group.trajectories] == [None, 0, 1, 2, None, None]
    assert [prompt_ids(t) for t in group.trajectories[4:]] == [sampled.plain] * 2
    rewards = [(1, 1.0), (2, 0.0), (3, 0.25), (4, 0.5), (5, 0.75)]
    assert sampled.credits(Stream.SOLUTION, "plain") == [(index, reward, 1.0) for index, reward in rewards]
    assert [context_ids(row) for row in group.rows if row.trajectory in (4, 5)] == [None] * 4
    assert sampled.credits(Stream.SKETCH) == [(0, reward, 1.0) for reward in (1.0, 0.0, 0.25)]


async def test_failed_episodes_are_in_no_row_and_in_no_sketchs_mean(scene: Scene) -> None:
    failing = {**TWICE, "expansion/0/1/1": "raise", "expansion/1/0/1": "raise", "expansion/1/1/1": "raise"}
    sampled = await sample(scene, SKETCHES, failing, expansions_per_sketch=2, train_on="both")
    group = sampled.group
    failed = [i for i, t in enumerate(group.trajectories) if t.verdict is Verdict.FAILED]
    assert failed == [2, 3, 4]
    assert not {row.trajectory for row in group.rows} & set(failed)
    assert sampled.credits(Stream.SOLUTION, "plain") == [(1, 1.0, 1.0), (5, 1.0, 1.0), (6, 0.5, 1.0)]
    # Nothing is known of the second sketch: it earns no reward, not a bad one.
    [listed] = [row for row in group.rows if row.trajectory == 0]
    assert [(c.first, c.last, c.reward) for c in listed.credits] == [(1, 2, 1.0), (5, 6, 0.75)]
    assert group.stats == GroupStats(sketches=3, env_steps=3)


async def test_a_group_whose_episodes_all_failed_has_nothing_to_train(scene: Scene) -> None:
    raising: dict[str, Said] = {f"expansion/{k}/0/1": "raise" for k in range(3)}
    sampled = await sample(scene, SKETCHES, raising, train_on="both")
    assert sampled.group.rows == ()


async def test_no_room_for_another_sketch_ends_the_list_and_plain_solutions_fill_up(scene: Scene) -> None:
    full: dict[str, Said] = {**SKETCHES, "sketch/2/0": None}
    sampled = await sample(scene, full, SOLUTIONS, train_on="guided")
    group = sampled.group
    assert [s.role for s in group.trajectories[0].segments] == [
        *(Role.PROMPT, Role.SKETCH, Role.OBSERVATION, Role.SKETCH),
    ]
    assert [t.sketch for t in group.trajectories] == [None, 0, 1, None]
    assert prompt_ids(group.trajectories[3]) == sampled.plain
    assert sampled.credits(Stream.SKETCH) == [(0, 1.0, 1.0), (0, 0.0, 1.0)]
    assert group.stats == GroupStats(sketches=2, env_steps=3)


async def test_a_list_without_a_sketch_is_no_trajectory(scene: Scene) -> None:
    """Else a prompt nobody answered would be counted as a wrong solution."""
    sampled = await sample(scene, {"sketch/0/0": None}, SOLUTIONS, train_on="both")
    assert [t.sketch for t in sampled.group.trajectories] == [None, None, None]
    assert [t.reward for t in sampled.group.trajectories] == [1.0, 0.0, 0.25]
    assert sampled.credits(Stream.SOLUTION, "plain") == [(0, 1.0, 1.0), (1, 0.0, 1.0), (2, 0.25, 1.0)]
    assert sampled.credits(Stream.SKETCH) == []


async def test_the_same_ticket_gives_the_same_group(scene: Scene) -> None:
    one, two = [await sample(scene, SKETCHES, SOLUTIONS, train_on="both") for _ in range(2)]
    assert encode_group(one.group) == encode_group(two.group)
