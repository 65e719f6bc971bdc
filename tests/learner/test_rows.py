"""Training rows by hand: which tokens are trained, by which advantage, with which share of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import RunConfig
from envs.trajectory import Credit, Group, Role, Row, Segment, Stream, Trajectory, Verdict
from learner.rows import TrainingRow, training_rows
from tests.builders import TICKET, answer, ints, observation, parallel_group, prompt, solution


def run_config(**grpo: object) -> RunConfig:
    return RunConfig.model_validate({"grpo": {"normalize_std": False, **grpo}})


CENTRED = run_config()


def one_group(*trajectories: Trajectory, rows: Sequence[Row]) -> Group:
    return Group(TICKET, "test", trajectories, tuple(rows))


def credit(first: int, last: int, reward: float, stream: Stream = Stream.SOLUTION, weight: float = 1.0) -> Credit:
    return Credit(first, last, stream, "all", reward, weight)


def two_turns() -> Trajectory:
    """Tokens 1 to 7: three of prompt, two of answer, one of observation, one of answer."""
    segments = (
        prompt(1, 2, 3),
        answer(4, 5, logprob=-0.25, version=3),
        observation(6),
        answer(7, logprob=-2.0, version=4),
    )
    return Trajectory(segments, Verdict.SOLVED, 1.0)


def sketch_list() -> Trajectory:
    """Tokens 1 to 9: a prompt of two, sketches of three, one and two, requests between them."""
    segments = (
        *(prompt(1, 2), answer(3, 4, 5, role=Role.SKETCH), observation(6)),
        *(answer(7, role=Role.SKETCH), observation(0), answer(8, 9, role=Role.SKETCH)),
    )
    return Trajectory(segments, Verdict.WRONG, 0.0)


def stream_sums(rows: Sequence[TrainingRow]) -> float:
    return float(sum(row.loss_weights.sum() for row in rows))


def test_only_sampled_tokens_that_earned_credit_are_trained() -> None:
    group = one_group(two_turns(), solution(0.0), rows=[Row(0, 1, (credit(1, 4, 1.0),)), Row(1, 1, (credit(1, 2, 0),))])
    row = training_rows([group], CENTRED)[0]
    assert row.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert row.targets.tolist() == [3, 4, 6]
    assert row.behaviour_logprobs.tolist() == [-0.25, -0.25, -2]
    assert row.policy_versions.tolist() == [3, 3, 4]
    assert row.advantages.tolist() == [0.5, 0.5, 0.5]
    assert (row.sequences.tolist(), row.streams.tolist()) == ([0, 0, 0], [0, 0, 0])
    np.testing.assert_allclose(row.loss_weights, [1 / 5] * 3, rtol=1e-6)  # 3 tokens here, 2 in the other
    assert row.own_context is True
    dtypes = [str(values.dtype) for values in (row.token_ids, row.targets, row.advantages, row.loss_weights)]
    assert dtypes == ["int32", "int32", "float32", "float32"]


def test_a_row_may_credit_a_part_and_start_later() -> None:
    """A branch: what came before the pivot is context, whoever sampled it."""
    row = Row(0, 3, (credit(3, 4, 1.0, Stream.BRANCH),))
    [trained] = training_rows([one_group(two_turns(), rows=[row])], CENTRED)
    assert trained.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert trained.targets.tolist() == [6]
    assert trained.behaviour_logprobs.tolist() == [-2]
    assert trained.loss_weights.tolist() == [1]
    assert trained.streams.tolist() == [2]


def test_a_replaced_context_leaves_the_targets_as_they_were() -> None:
    row = Row(0, 1, (credit(1, 4, 1.0),), context_ids=ints(90, 91))
    [trained] = training_rows([one_group(two_turns(), rows=[row])], CENTRED)
    assert trained.token_ids.tolist() == [90, 91, 4, 5, 6, 7]
    assert trained.targets.tolist() == [2, 3, 5]
    assert trained.behaviour_logprobs.tolist() == [-0.25, -0.25, -2]
    assert trained.policy_versions.tolist() == [3, 3, 4]
    assert trained.own_context is False


@pytest.mark.parametrize(
    ("context_ids", "row_cap", "run_cap", "expected"),
    [
        (None, None, 2.0, 2.0),
        (None, 5.0, 2.0, 2.0),  # in its own context a row follows the run's setting
        (None, None, None, None),
        (ints(9), None, 2.0, None),  # under another context the ratio is no correction, unless it was asked for
        (ints(9), 5.0, 2.0, 5.0),
        (ints(9), 5.0, None, 5.0),
    ],
)
def test_which_importance_cap_holds(
    context_ids: np.ndarray | None, row_cap: float | None, run_cap: float | None, expected: float | None
) -> None:
    row = Row(0, 1, (credit(1, 2, 1.0),), context_ids, row_cap)
    [trained] = training_rows([one_group(solution(1.0), rows=[row])], run_config(importance={"cap": run_cap}))
    assert trained.importance_cap == expected


def test_each_sketch_of_a_list_earns_its_own_advantage() -> None:
    credits = [credit(1, 2, 1.0, Stream.SKETCH), credit(3, 4, 0.0, Stream.SKETCH), credit(5, 6, -0.25, Stream.SKETCH)]
    [row] = training_rows([one_group(sketch_list(), rows=[Row(0, 1, tuple(credits))])], CENTRED)
    assert row.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 0, 8, 9]
    assert row.targets.tolist() == [2, 3, 4, 6, 8, 9]
    assert row.sequences.tolist() == [0, 0, 0, 1, 2, 2]
    assert row.advantages.tolist() == [0.75, 0.75, 0.75, -0.25, -0.5, -0.5]
    np.testing.assert_allclose(row.loss_weights, [1 / 6] * 6, rtol=1e-6)


def test_a_sketch_without_credit_is_context() -> None:
    credits = (credit(1, 2, 1.0, Stream.SKETCH), credit(5, 6, 0.0, Stream.SKETCH))
    [row] = training_rows([one_group(sketch_list(), rows=[Row(0, 1, credits)])], CENTRED)
    assert row.targets.tolist() == [2, 3, 4, 8, 9]
    assert row.advantages.tolist() == [0.5, 0.5, 0.5, -0.5, -0.5]
    np.testing.assert_allclose(row.loss_weights, [1 / 5] * 5, rtol=1e-6)


def test_rewards_are_compared_inside_one_baseline_of_one_stream_of_one_group() -> None:
    a, b = replace(credit(1, 2, 1.0), baseline="a"), replace(credit(1, 2, 0.5), baseline="b")
    rows = [
        *(Row(0, 1, (a,)), Row(1, 1, (replace(a, reward=0.0),))),
        *(Row(0, 1, (b,)), Row(1, 1, (replace(b, reward=-0.5),))),
        *(Row(2, 1, (replace(a, last=2, stream=Stream.SKETCH, reward=7.0),)),),
    ]
    again = [Row(0, 1, (replace(a, reward=9.0),)), Row(1, 1, (replace(a, reward=8.0),))]
    groups = [one_group(solution(1.0), solution(0.0), sketch_list(), rows=rows)]
    groups += [one_group(solution(9.0), solution(8.0), rows=again)]
    kept = run_config(normalize_std=False, drop_zero_signal=False)
    advantages = [row.advantages[0] for row in training_rows(groups, kept)]
    assert advantages == [0.5, -0.5, 0.5, -0.5, 0.0, 0.5, -0.5]


def test_a_baseline_of_equal_rewards_dilutes_nothing_where_groups_like_it_are_dropped() -> None:
    """Two pivots of one group: the branches of the second all fail. Those of the first alone make the stream's mean."""
    rewards = {"branch/0": (1.0, 0.0), "branch/1": (0.0, 0.0)}
    rows = [
        Row(0, 1, (Credit(1, 2, Stream.BRANCH, baseline, reward),))
        for baseline, pair in rewards.items()
        for reward in pair
    ]
    groups = [one_group(solution(1.0, tokens=2), rows=rows)]
    useful, other, *dead = training_rows(groups, CENTRED)
    assert useful.loss_weights.tolist() == other.loss_weights.tolist() == [0.25, 0.25]
    assert [len(row.targets) for row in dead] == [0, 0]
    everything = training_rows(groups, run_config(normalize_std=False, drop_zero_signal=False))
    assert [row.loss_weights.tolist() for row in everything] == [[0.125, 0.125]] * 4
    # A group that has no signal anywhere was kept on purpose, or is not this function's to drop.
    alone = [one_group(solution(1.0, tokens=2), rows=rows[2:])]
    assert [len(row.targets) for row in training_rows(alone, CENTRED)] == [2, 2]


def test_advantages_are_divided_where_asked() -> None:
    rows = training_rows([parallel_group(1.0, 0.5, 0.0, 0.5)], run_config(normalize_std=True))
    assert [row.advantages[0] for row in rows] == pytest.approx([2**0.5, 0, -(2**0.5), 0], abs=1e-5)


def test_a_stream_is_normalised_over_the_whole_batch() -> None:
    """T is 3 + 5 in one group and 4 in the other: long answers weigh more than short ones, groups are not averaged."""
    groups = [parallel_group(1, 0, tokens=[3, 5]), parallel_group(1, index=1, tokens=[4])]
    rows = training_rows(groups, CENTRED)
    for row in rows:
        np.testing.assert_allclose(row.loss_weights, 1 / 12, rtol=1e-6)
    assert [len(row.targets) for row in rows] == [3, 5, 4]


def test_each_stream_sums_to_its_weight() -> None:
    listed = [credit(1, 2, 1.0, Stream.SKETCH), credit(3, 4, 0.0, Stream.SKETCH)]
    rows = [Row(0, 1, tuple(listed)), Row(1, 1, (credit(1, 2, 1.0),)), Row(2, 1, (credit(1, 2, 0.0),))]
    group = one_group(sketch_list(), solution(1.0, tokens=7), solution(0.0, tokens=2), rows=rows)
    settings = run_config(streams={"solution": {"weight": 2.0}, "sketch": {"weight": 0.5}, "branch": {"weight": 9.0}})
    sketches, one, two = training_rows([group], settings)
    assert stream_sums([sketches]) == pytest.approx(0.5)
    assert stream_sums([one, two]) == pytest.approx(2.0)
    assert sketches.loss_weights.max() == pytest.approx(0.5 / 4)
    assert one.loss_weights.max() == two.loss_weights.max() == pytest.approx(2.0 / 9)


def test_a_credits_weight_scales_its_share() -> None:
    """One solution trained twice: 2 * 2 tokens of the stream, weighed 0.25 and 0.75."""
    plain, guided = credit(1, 2, 1.0, weight=0.25), credit(1, 2, 1.0, weight=0.75)
    rows = [Row(0, 1, (plain,), ints(9)), Row(0, 1, (guided,))]
    one, two = training_rows([one_group(solution(1.0), rows=rows)], CENTRED)
    assert stream_sums([one]) == pytest.approx(2 * 0.25 / 4)
    assert stream_sums([two]) == pytest.approx(2 * 0.75 / 4)


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4), st.floats(0, 3))
def test_whatever_the_batch_a_stream_sums_to_its_weight(lengths: list[list[int]], weight: float) -> None:
    groups = [parallel_group(*[0.0] * len(tokens), index=i, tokens=tokens) for i, tokens in enumerate(lengths)]
    settings = run_config(streams={"solution": {"weight": weight}})
    assert stream_sums(training_rows(groups, settings)) == pytest.approx(weight, rel=1e-5)


def test_a_sampled_token_without_a_context_is_refused() -> None:
    row = Row(0, 0, (credit(0, 1, 1.0),))
    bare = Trajectory((answer(4, 5),), Verdict.SOLVED, 1.0)
    with pytest.raises(ValueError, match="ticket 5: a row that begins with a sampled token"):
        training_rows([one_group(bare, rows=[row])], CENTRED)


def test_a_batch_without_rows_is_empty() -> None:
    assert training_rows([one_group(solution(1.0), rows=[])], CENTRED) == []


# --- normalisers, per stream -----------------------------------------------------------------------------------------


def weights_of(groups: Sequence[Group], **grpo: object) -> list[float]:
    """What each token of each row counts."""
    rows = training_rows(groups, run_config(**grpo))
    for row in rows:
        assert len(set(row.loss_weights.tolist())) == 1
    return [float(row.loss_weights[0]) for row in rows]


def test_normalisers_by_hand() -> None:
    """Sequences of 3, 5 and 4 tokens: 12 in all; a third each; a third of 1/6 a token with a constant of 6."""
    groups = [parallel_group(1, 0, tokens=[3, 5]), parallel_group(1, index=1, tokens=[4])]
    assert weights_of(groups, normalizer="token") == pytest.approx([1 / 12] * 3)
    assert weights_of(groups, normalizer="sequence") == pytest.approx([1 / 9, 1 / 15, 1 / 12])
    assert weights_of(groups, normalizer="constant", constant_length=6) == pytest.approx([1 / 18] * 3)


def test_the_constant_is_the_most_an_answer_may_be_where_none_is_given() -> None:
    config = RunConfig.model_validate({"grpo": {"normalizer": "constant"}, "rollout": {"tokens_per_turn": 40}})
    [row] = training_rows([parallel_group(1.0)], config)
    assert row.loss_weights.tolist() == pytest.approx([1 / 40] * 2)


def test_a_stream_may_have_a_normaliser_of_its_own() -> None:
    listed = [credit(1, 2, 1.0, Stream.SKETCH), credit(3, 4, 0.0, Stream.SKETCH)]
    rows = [Row(0, 1, tuple(listed)), Row(1, 1, (credit(1, 2, 1.0),)), Row(2, 1, (credit(1, 2, 0.0),))]
    group = one_group(sketch_list(), solution(1.0, tokens=7), solution(0.0, tokens=2), rows=rows)
    sketches, one, two = training_rows([group], run_config(streams={"sketch": {"normalizer": "sequence"}}))
    assert sketches.loss_weights.tolist() == pytest.approx([1 / 6] * 3 + [1 / 2])
    assert [one.loss_weights[0], two.loss_weights[0]] == pytest.approx([1 / 9, 1 / 9])


# --- overlong answers ------------------------------------------------------------------------------------------------


def cut_short(trajectory: Trajectory) -> Trajectory:
    """Its last segment met its token limit."""
    *rest, last = trajectory.segments
    return replace(trajectory, segments=(*rest, replace(last, ended=False)))


def test_a_cut_answer_is_not_trained_where_those_are_masked_but_counts_in_its_baseline() -> None:
    rows = [Row(0, 1, (credit(1, 2, 1.0),)), Row(1, 1, (credit(1, 2, 0.0),))]
    group = one_group(solution(1.0, tokens=3), cut_short(solution(0.0, tokens=5)), rows=rows)
    kept, cut = training_rows([group], run_config(overlong={"mask_truncated": True}))
    assert (len(kept.targets), len(cut.targets)) == (3, 0)
    assert kept.advantages.tolist() == [0.5] * 3
    np.testing.assert_allclose(kept.loss_weights, 1 / 3, rtol=1e-6)
    assert [len(row.targets) for row in training_rows([group], CENTRED)] == [3, 5]


def test_answers_near_the_limit_lose_reward_before_they_are_compared() -> None:
    """A limit of 10 and a buffer of 4: 8 tokens are half way in and lose half of 0.6."""
    config = RunConfig.model_validate(
        {
            "grpo": {"normalize_std": False, "overlong": {"buffer_tokens": 4, "penalty": 0.6}},
            "rollout": {"tokens_per_turn": 10},
        }
    )
    rows = training_rows([parallel_group(1.0, 1.0, tokens=[8, 6])], config)
    assert [row.advantages[0] for row in rows] == pytest.approx([-0.15, 0.15])


def test_the_parts_of_an_answer_cut_at_a_pivot_are_one_answer() -> None:
    """Limit 10, buffer 4: parts of 5 and 3 tokens are 8, half way in; a branch of 3 tokens goes on from the same 5."""
    config = RunConfig.model_validate(
        {
            "grpo": {"normalize_std": False, "overlong": {"buffer_tokens": 4, "penalty": 0.6}},
            "rollout": {"tokens_per_turn": 10},
        }
    )
    whole = solution(1.0, tokens=8)
    context, answered = whole.segments
    halves = [
        Segment(Role.ANSWER, answered.token_ids[a:b], answered.behaviour_logprobs[a:b], answered.policy_versions[a:b])
        for a, b in ((0, 5), (5, 8))
    ]
    cut = replace(whole, segments=(context, *halves))
    rows = [
        Row(0, 1, (Credit(1, 3, Stream.SOLUTION, "all", 1.0),)),
        Row(1, 1, (credit(1, 2, 1.0),)),
        Row(0, 2, (Credit(2, 3, Stream.BRANCH, "branch", 1.0),)),
        Row(1, 1, (Credit(1, 2, Stream.BRANCH, "branch", 1.0),)),
    ]
    group = one_group(cut, solution(1.0, tokens=6), rows=rows)
    trained = training_rows([group], config)
    assert [row.advantages[0] for row in trained] == pytest.approx([-0.15, 0.15, -0.15, 0.15])
