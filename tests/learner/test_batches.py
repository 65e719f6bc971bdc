"""Micro-batches: every row once, ranks in step, the budget kept; tensors hold exactly what rows hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.batches import MicroBatch, collate, plan_micro_batches
from learner.rows import TrainingRow

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def row(*token_ids: int, importance_cap: float | None = 2.0, own_context: bool = True) -> TrainingRow:
    """Trained from the second token on, each token but the last a sequence with its follower; odd floats."""
    m = len(token_ids) - 1
    return TrainingRow(
        token_ids=np.array(token_ids, np.int32),
        targets=np.arange(1, m + 1, dtype=np.int32),
        sequences=np.arange(m, dtype=np.int32) // 2,
        streams=np.ones(m, np.int32),
        behaviour_logprobs=(-np.arange(1, m + 1) / 3).astype(np.float32),
        policy_versions=np.full(m, 7, np.int32),
        advantages=np.full(m, 1 / 7, np.float32),
        loss_weights=np.full(m, 1e-5 / 3, np.float32),
        own_context=own_context,
        importance_cap=importance_cap,
    )


# --- the plan --------------------------------------------------------------------------------------------------------


def tokens_of(batch: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[i] for i in batch)


@given(LENGTHS, st.integers(1, 5), st.integers(1, 200))
def test_a_plan_holds_each_row_once_and_keeps_ranks_in_step(lengths: list[int], ranks: int, budget: int) -> None:
    plan = plan_micro_batches(lengths, ranks, budget)
    assert sorted(i for share in plan for batch in share for i in batch) == list(range(len(lengths)))
    assert len(plan) == ranks
    assert len({len(share) for share in plan}) == 1
    assert any(share[-1] for share in plan)  # a forward in which all ranks stand in is one too many


@given(LENGTHS, st.integers(1, 5), st.integers(1, 200))
def test_the_budget_is_kept_but_for_single_long_rows(lengths: list[int], ranks: int, budget: int) -> None:
    for share in plan_micro_batches(lengths, ranks, budget):
        for batch in filter(None, share):
            assert tokens_of(batch, lengths) <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 5))
def test_ranks_get_about_the_same_tokens(lengths: list[int], ranks: int) -> None:
    """No two ranks are further apart than the longest row."""
    shares = [sum(tokens_of(batch, lengths) for batch in share) for share in plan_micro_batches(lengths, ranks, 100)]
    assert max(shares) - min(shares) <= max(lengths)


@given(LENGTHS, st.integers(1, 3), st.integers(60, 200))
def test_the_longest_row_of_a_micro_batch_comes_first(lengths: list[int], ranks: int, budget: int) -> None:
    """Rows of like length are neighbours: attention pads them to each other."""
    for share in plan_micro_batches(lengths, ranks, budget):
        for batch in share:
            own = [lengths[i] for i in batch]
            assert own == sorted(own, reverse=True)


def test_a_plan_by_hand() -> None:
    """Longest first to the emptiest: 9, 4, 3 and 8, 6, 1; two micro-batches of at most 12 tokens on each rank."""
    plan = plan_micro_batches([3, 9, 6, 1, 8, 4], ranks=2, budget=12)
    assert plan == [[[1], [5, 0]], [[4], [2, 3]]]


def test_ranks_without_rows_stand_in() -> None:
    assert plan_micro_batches([5, 5], ranks=3, budget=5) == [[[0]], [[1]], [[]]]
    assert plan_micro_batches([5, 5, 5], ranks=2, budget=5) == [[[0], [2]], [[1], []]]


def test_a_row_beyond_the_budget_has_a_micro_batch_of_its_own() -> None:
    assert plan_micro_batches([50, 2, 2], ranks=1, budget=10) == [[[0], [1, 2]]]


# --- the tensors -----------------------------------------------------------------------------------------------------


def test_rows_lie_end_to_end() -> None:
    batch = collate([row(5, 6, 7), row(8, 9, importance_cap=None, own_context=False)], CPU)
    assert batch.token_ids.tolist() == [5, 6, 7, 8, 9]
    assert batch.lengths == (3, 2)
    assert batch.targets.tolist() == [1, 2, 4]
    assert batch.token_ids[batch.targets].tolist() == [6, 7, 9]
    assert batch.sequences.tolist() == [0, 0, 1]
    assert batch.streams.tolist() == [1, 1, 1]
    assert batch.policy_versions.tolist() == [7, 7, 7]
    assert batch.importance_caps.tolist() == [2.0, 2.0, float("inf")]
    assert batch.own_context.tolist() == [True, True, False]
    assert batch.rows == 2


def test_sequences_are_numbered_over_the_whole_micro_batch() -> None:
    batch = collate([row(*range(6)), row(*range(3)), row(*range(4))], CPU)
    assert batch.sequences.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]


def test_a_row_without_trained_tokens_is_context_alone() -> None:
    batch = collate([row(1), row(2, 3)], CPU)
    assert batch.lengths == (1, 2)
    assert batch.targets.tolist() == [2]
    assert batch.sequences.tolist() == [0]


@pytest.mark.parametrize("name", ["behaviour_logprobs", "advantages", "loss_weights"])
def test_floats_arrive_exactly(name: str) -> None:
    rows = [row(*range(9)), row(*range(4))]
    tensor: torch.Tensor = getattr(collate(rows, CPU), name)
    assert tensor.dtype == torch.float32
    assert tensor.tolist() == [value for one in rows for value in getattr(one, name).tolist()]


def test_large_token_ids_and_versions_arrive_exactly() -> None:
    big = 2**31 - 1
    batch = collate([replace(row(big, 2**24 + 1), policy_versions=np.array([big], np.int32))], CPU)
    assert (batch.token_ids.dtype, batch.token_ids.tolist()) == (torch.long, [big, 2**24 + 1])
    assert batch.policy_versions.tolist() == [big]


def test_a_stand_in_can_be_run_and_trains_nothing() -> None:
    batch = collate([], CPU)
    assert batch.rows == 0
    assert batch.lengths == (2,)  # one position to predict a token from
    assert batch.targets.tolist() == [1]
    assert batch.loss_weights.tolist() == batch.advantages.tolist() == [0.0]
    assert batch.importance_caps.tolist() == [float("inf")]
    assert batch.own_context.tolist() == [False]


@given(st.lists(st.integers(2, 6), max_size=5))
def test_shapes(lengths: list[int]) -> None:
    batch = collate([row(*range(n)) for n in lengths], CPU)
    trained = sum(n - 1 for n in lengths) or 1
    for f in fields(MicroBatch):
        value = getattr(batch, f.name)
        if isinstance(value, torch.Tensor):
            assert value.shape == ((sum(lengths) or 2,) if f.name == "token_ids" else (trained,)), f.name
