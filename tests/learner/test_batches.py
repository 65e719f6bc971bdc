"""Micro-batches as tensors: they hold exactly what rows hold."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.batches import MicroBatch, collate
from learner.plan import Unit
from learner.rows import TrainingRow

CPU = torch.device("cpu")


PER_TOKEN = (
    *("targets", "sequences", "streams", "behaviour_logprobs", "policy_versions", "advantages", "loss_weights"),
)


def row(*token_ids: int, importance_cap: float | None = 2.0, own_context: bool = True, group: int = 0) -> TrainingRow:
    """Trained from the second token on, each token but the last a sequence with its follower; odd floats."""
    m = len(token_ids) - 1
    return TrainingRow(
        group=group,
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


def collated(*rows: TrainingRow, shared: int = 0) -> MicroBatch:
    """One unit a row, or one unit of all rows behind `shared` tokens."""
    units = [Unit(tuple(range(len(rows))), shared, 0)] if shared else [Unit((i,), 0, 0) for i in range(len(rows))]
    return collate(rows, units, CPU)


# --- the tensors -----------------------------------------------------------------------------------------------------


def test_rows_lie_end_to_end() -> None:
    batch = collated(row(5, 6, 7), row(8, 9, importance_cap=None, own_context=False))
    assert batch.token_ids.tolist() == [5, 6, 7, 8, 9]
    assert batch.lengths == (3, 2)
    assert batch.targets.tolist() == [1, 2, 4]
    assert batch.sources.tolist() == [0, 1, 3]
    assert batch.token_ids[batch.targets].tolist() == [6, 7, 9]
    assert batch.sequences.tolist() == [0, 0, 1]
    assert batch.streams.tolist() == [1, 1, 1]
    assert batch.policy_versions.tolist() == [7, 7, 7]
    assert batch.importance_caps.tolist() == [2.0, 2.0, float("inf")]
    assert batch.own_context.tolist() == [True, True, False]
    assert batch.rows == 2


def test_a_shared_beginning_lies_there_once() -> None:
    """Rows 1 2 | 3 4 and 1 2 | 5: the first own token of each is predicted from the shared beginning's last."""
    first, second = (replace(one, targets=one.targets[1:]) for one in (row(1, 2, 3, 4), row(1, 2, 5)))
    first, second = (
        replace(one, **{n: getattr(one, n)[1:] for n in PER_TOKEN if n != "targets"}) for one in (first, second)
    )
    batch = collated(first, second, shared=2)
    assert batch.token_ids.tolist() == [1, 2, 3, 4, 5]
    assert batch.lengths == (4, 3)
    assert batch.targets.tolist() == [2, 3, 4]
    assert batch.sources.tolist() == [1, 2, 1]
    assert batch.layout.position_ids.tolist() == [[0, 1, 2, 3, 2]]


def test_sequences_are_numbered_over_the_whole_micro_batch() -> None:
    batch = collated(row(*range(6)), row(*range(3)), row(*range(4)))
    assert batch.sequences.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]


def test_a_row_without_trained_tokens_is_context_alone() -> None:
    batch = collated(row(1), row(2, 3))
    assert batch.lengths == (1, 2)
    assert batch.targets.tolist() == [2]
    assert batch.sequences.tolist() == [0]


@pytest.mark.parametrize("name", ["behaviour_logprobs", "advantages", "loss_weights"])
def test_floats_arrive_exactly(name: str) -> None:
    rows = [row(*range(9)), row(*range(4))]
    tensor: torch.Tensor = getattr(collated(*rows), name)
    assert tensor.dtype == torch.float32
    assert tensor.tolist() == [value for one in rows for value in getattr(one, name).tolist()]


def test_large_token_ids_and_versions_arrive_exactly() -> None:
    big = 2**31 - 1
    batch = collated(replace(row(big, 2**24 + 1), policy_versions=np.array([big], np.int32)))
    assert (batch.token_ids.dtype, batch.token_ids.tolist()) == (torch.long, [big, 2**24 + 1])
    assert batch.policy_versions.tolist() == [big]


def test_a_stand_in_can_be_run_and_trains_nothing() -> None:
    batch = collate([], [], CPU)
    assert batch.rows == 0
    assert batch.lengths == (2,)  # one position to predict a token from
    assert batch.targets.tolist() == [1]
    assert batch.loss_weights.tolist() == batch.advantages.tolist() == [0.0]
    assert batch.importance_caps.tolist() == [float("inf")]
    assert batch.own_context.tolist() == [False]


@given(st.lists(st.integers(2, 6), max_size=5))
def test_shapes(lengths: list[int]) -> None:
    batch = collated(*[row(*range(n)) for n in lengths])
    trained = sum(n - 1 for n in lengths) or 1
    for f in fields(MicroBatch):
        value = getattr(batch, f.name)
        if isinstance(value, torch.Tensor):
            assert value.shape == ((sum(lengths) or 2,) if f.name == "token_ids" else (trained,)), f.name
