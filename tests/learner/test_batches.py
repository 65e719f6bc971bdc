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
    """Trained from the second token on; floats that neither an integer nor a float16 holds."""
    n = len(token_ids)
    trained = np.arange(n) > 0
    return TrainingRow(
        token_ids=np.array(token_ids, np.int32),
        loss_mask=trained,
        behaviour_logprobs=np.where(trained, -np.arange(n) / 3, 0).astype(np.float32),
        policy_versions=np.where(trained, 7, -1).astype(np.int32),
        advantages=np.where(trained, np.float32(1 / 7), 0).astype(np.float32),
        loss_weights=np.where(trained, np.float32(1e-5 / 3), 0).astype(np.float32),
        own_context=own_context,
        importance_cap=importance_cap,
    )


# --- the plan --------------------------------------------------------------------------------------------------------


def padded_tokens(batch: Sequence[int], lengths: Sequence[int]) -> int:
    return len(batch) * max(lengths[i] for i in batch)


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
            assert padded_tokens(batch, lengths) <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 5))
def test_ranks_get_about_the_same_tokens(lengths: list[int], ranks: int) -> None:
    """Dealt out back and forth, no two ranks are further apart than the longest row."""
    shares = [sum(lengths[i] for batch in share for i in batch) for share in plan_micro_batches(lengths, ranks, 100)]
    assert max(shares) - min(shares) <= max(lengths)


@given(st.lists(st.integers(1, 60), min_size=8, max_size=40), st.integers(2, 4))
def test_ranks_get_the_same_number_of_rows_but_for_one(lengths: list[int], ranks: int) -> None:
    counts = [sum(map(len, share)) for share in plan_micro_batches(lengths, ranks, 100)]
    assert max(counts) - min(counts) <= 1


def test_a_plan_by_hand() -> None:
    """Longest first, back and forth: rank 0 gets 9, 4, 3; rank 1 gets 8, 6, 1. A budget of 12 holds 4 + 3 and 6 + 1."""
    plan = plan_micro_batches([3, 9, 6, 1, 8, 4], ranks=2, tokens_per_micro_batch=12)
    assert plan == [[[1], [5, 0]], [[4], [2, 3]]]


def test_ranks_without_rows_stand_in() -> None:
    assert plan_micro_batches([5, 5], ranks=3, tokens_per_micro_batch=5) == [[[0]], [[1]], [[]]]
    assert plan_micro_batches([5, 5, 5], ranks=2, tokens_per_micro_batch=5) == [[[0], []], [[1], [2]]]


def test_like_lengths_come_together() -> None:
    """Four rows of 10 and four of 1 take two forwards of 40 and 4 padded tokens, not mixtures of 80."""
    plan = plan_micro_batches([10, 1, 10, 1, 10, 1, 10, 1], ranks=1, tokens_per_micro_batch=40)
    assert plan == [[[0, 2, 4, 6], [1, 3, 5, 7]]]


# --- the tensors -----------------------------------------------------------------------------------------------------


def test_rows_are_padded_on_the_right() -> None:
    batch = collate([row(5, 6, 7), row(8, importance_cap=None, own_context=False)], CPU)
    assert batch.token_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.loss_mask.tolist() == [[False, True, True], [False, False, False]]
    assert batch.policy_versions.tolist() == [[-1, 7, 7], [-1, -1, -1]]
    assert batch.advantages[1].tolist() == batch.loss_weights[1].tolist() == [0.0, 0.0, 0.0]
    assert batch.importance_caps.tolist() == [[2.0], [float("inf")]]
    assert batch.own_context.tolist() == [[True], [False]]


@pytest.mark.parametrize("name", ["behaviour_logprobs", "advantages", "loss_weights"])
def test_floats_arrive_exactly(name: str) -> None:
    """They were cut to whole numbers once: the buffer had the type of the fill value."""
    rows = [row(*range(9)), row(*range(4))]
    tensor: torch.Tensor = getattr(collate(rows, CPU), name)
    assert tensor.dtype == torch.float32
    for i, one in enumerate(rows):
        values = getattr(one, name)
        assert tensor[i, : len(values)].tolist() == values.tolist()
        assert tensor[i, len(values) :].tolist() == [0.0] * (9 - len(values))


def test_large_token_ids_and_versions_arrive_exactly() -> None:
    big = 2**31 - 1
    one = replace(row(big, 2**24 + 1), policy_versions=np.array([-1, big], np.int32))
    batch = collate([one], CPU)
    assert (batch.token_ids.dtype, batch.token_ids.tolist()) == (torch.long, [[big, 2**24 + 1]])
    assert batch.policy_versions.tolist() == [[-1, big]]


def test_a_stand_in_can_be_run_and_trains_nothing() -> None:
    batch = collate([], CPU)
    assert batch.token_ids.shape == (1, 2)  # one position to predict a token from
    assert batch.attention_mask.tolist() == [[1, 1]]
    assert not batch.loss_mask.any()
    assert batch.loss_weights.tolist() == batch.advantages.tolist() == [[0.0, 0.0]]
    assert batch.importance_caps.tolist() == [[float("inf")]]
    assert batch.own_context.tolist() == [[False]]


@given(st.lists(st.integers(1, 6), max_size=5))
def test_shapes(lengths: list[int]) -> None:
    batch = collate([row(*range(n)) for n in lengths], CPU)
    rows, width = max(len(lengths), 1), max(lengths, default=2)
    for f in fields(MicroBatch):
        expected = (rows, 1) if f.name in ("importance_caps", "own_context") else (rows, width)
        assert getattr(batch, f.name).shape == expected, f.name
