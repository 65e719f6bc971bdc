"""The plan: every row once, ranks in step, the budget kept, beginnings shared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import DeepspeedSettings
from learner.plan import MIN_SHARED, Unit, common_prefix, plan_micro_batches, plan_rows, shared_units
from learner.rows import TrainingRow

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def planned(lengths: Sequence[int], ranks: int, budget: int) -> list[list[list[int]]]:
    """Row numbers by [rank][micro-batch] where each row is a unit."""
    units = [Unit((i,), 0, n) for i, n in enumerate(lengths)]
    plan = plan_micro_batches(units, ranks, budget)
    return [[[i for unit in batch for i in unit.rows] for batch in share] for share in plan]


def row(group: int, *token_ids: int, first_target: int) -> TrainingRow:
    m = len(token_ids) - first_target
    floats, ints = np.zeros(m, np.float32), np.zeros(m, np.int32)
    targets = np.arange(first_target, len(token_ids), dtype=np.int32)
    return TrainingRow(
        group, np.array(token_ids, np.int32), targets, ints, ints, floats, ints, floats, floats, True, None
    )


def tokens_of(batch: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[i] for i in batch)


# --- micro-batches ---------------------------------------------------------------------------------------------------


@given(LENGTHS, st.integers(1, 5), st.integers(1, 200))
def test_a_plan_holds_each_row_once_and_keeps_ranks_in_step(lengths: list[int], ranks: int, budget: int) -> None:
    plan = planned(lengths, ranks, budget)
    assert sorted(i for share in plan for batch in share for i in batch) == list(range(len(lengths)))
    assert len(plan) == ranks
    assert len({len(share) for share in plan}) == 1
    assert any(share[-1] for share in plan)  # a forward in which all ranks stand in is one too many


@given(LENGTHS, st.integers(1, 5), st.integers(1, 200))
def test_the_budget_is_kept_but_for_single_long_rows(lengths: list[int], ranks: int, budget: int) -> None:
    for share in planned(lengths, ranks, budget):
        for batch in filter(None, share):
            assert tokens_of(batch, lengths) <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 5))
def test_ranks_get_about_the_same_tokens(lengths: list[int], ranks: int) -> None:
    """No two ranks are further apart than the longest row."""
    shares = [sum(tokens_of(batch, lengths) for batch in share) for share in planned(lengths, ranks, 100)]
    assert max(shares) - min(shares) <= max(lengths)


def test_a_plan_by_hand() -> None:
    """Longest first to the emptiest: 9, 4, 3 and 8, 6, 1; two micro-batches of at most 12 tokens on each rank."""
    plan = planned([3, 9, 6, 1, 8, 4], ranks=2, budget=12)
    assert plan == [[[1], [5, 0]], [[4], [2, 3]]]


def test_ranks_without_rows_stand_in() -> None:
    assert planned([5, 5], ranks=3, budget=5) == [[[0]], [[1]], [[]]]
    assert planned([5, 5, 5], ranks=2, budget=5) == [[[0], [2]], [[1], []]]


def test_a_row_beyond_the_budget_has_a_micro_batch_of_its_own() -> None:
    assert planned([50, 2, 2], ranks=1, budget=10) == [[[0], [1, 2]]]


# --- shared beginnings -----------------------------------------------------------------------------------------------

BEGINNING = tuple(range(50, 50 + MIN_SHARED))


def family(group: int, *ends: Iterable[int]) -> list[TrainingRow]:
    """Rows that begin alike and are trained behind that."""
    return [row(group, *BEGINNING, *end, first_target=MIN_SHARED) for end in ends]


def test_rows_of_a_group_share_what_they_begin_with() -> None:
    rows = family(0, [1, 2], [3], [4, 5, 6])
    assert shared_units(rows, most=100) == [Unit((0, 1, 2), MIN_SHARED, MIN_SHARED + 6)]


def test_rows_of_different_groups_share_nothing() -> None:
    rows = family(0, [1, 2], [3]) + family(1, [4])
    assert [unit.rows for unit in shared_units(rows, most=100)] == [(0, 1), (2,)]
    assert shared_units(rows, most=100)[1] == Unit((2,), 0, MIN_SHARED + 1)


def test_a_trained_token_is_never_shared() -> None:
    """Two rows of the same tokens, trained from the third and from the second on: two lie there once."""
    same = [1, 2, 3, 4]
    assert common_prefix([row(0, *same, first_target=3), row(0, *same, first_target=2)]) == 2
    assert common_prefix([row(0, 1, 2, 9, 4, first_target=3), row(0, *same, first_target=3)]) == 2
    assert common_prefix([row(0, 7, 2, first_target=1), row(0, 8, 2, first_target=1)]) == 0


def test_a_short_beginning_is_not_worth_it() -> None:
    rows = [row(0, *BEGINNING[1:], end, first_target=MIN_SHARED - 1) for end in (1, 2)]
    assert [(unit.rows, unit.prefix) for unit in shared_units(rows, most=100)] == [((0,), 0), ((1,), 0)]


def test_a_large_family_is_split_and_each_part_has_the_beginning() -> None:
    rows = family(0, *([i] * 4 for i in range(5)))
    most = MIN_SHARED + 8
    assert [(unit.rows, unit.tokens) for unit in shared_units(rows, most)] == [
        ((0, 1), most),
        ((2, 3), most),
        ((4,), MIN_SHARED + 4),
    ]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_row_is_planned_once_and_ranks_have_equal_work(ranks: int) -> None:
    rng = np.random.default_rng(ranks)
    rows = [r for g in range(16) for r in family(g, *(rng.integers(0, 9, rng.integers(20, 40)) for _ in range(8)))]
    settings = DeepspeedSettings(ranks=ranks, tokens_per_micro_batch=1000)
    plan = plan_rows(rows, settings)
    assert sorted(i for share in plan for batch in share for u in batch for i in u.rows) == list(range(len(rows)))
    work = [sum(unit.tokens for batch in share for unit in batch) for share in plan]
    assert max(work) / min(work) <= 1.25
    assert max(sum(unit.tokens for unit in batch) for share in plan for batch in share) <= 1000


def test_without_rows_every_rank_stands_in() -> None:
    assert plan_rows([], DeepspeedSettings(ranks=2)) == [[[]], [[]]]


def test_without_packing_rows_stay_whole() -> None:
    rows = family(0, [1, 2], [3])
    [[batch]] = plan_rows(rows, DeepspeedSettings(ranks=1, packing=False))
    assert sorted((unit.rows, unit.prefix) for unit in batch) == [((0,), 0), ((1,), 0)]


def test_branches_of_a_pivot_share_all_that_came_before_it() -> None:
    """Four solutions of a prompt of 10 tokens, two branches behind 30 tokens, two behind 40, and one row of its own."""
    contexts = [list(range(10))] * 4 + [list(range(30))] * 2 + [list(range(40))] * 2 + [list(range(20))]
    rows = [row(0, *context, *[99] * 5, first_target=len(context)) for context in contexts]
    units = {unit.rows: (unit.prefix, unit.tokens) for unit in shared_units(rows, most=10_000)}
    assert units == {
        (0, 1, 2, 3): (10, 10 + 4 * 5),
        (4, 5): (30, 30 + 2 * 5),
        (6, 7): (40, 40 + 2 * 5),
        (8,): (0, 25),
    }


def test_rows_whose_contexts_differ_share_what_they_begin_with() -> None:
    contexts = [[*range(12), 50 + i] for i in range(3)]
    [unit] = shared_units([row(0, *context, 98, 99, first_target=len(context)) for context in contexts], most=10_000)
    assert (unit.rows, unit.prefix, unit.tokens) == ((0, 1, 2), 12, 12 + 3 * 3)
