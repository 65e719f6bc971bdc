"""Rows end to end: positions, chunks that attend together, and a padding that is bounded."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.layout import MAX_PADDING, Layout, layout_of

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40).map(lambda rows: sorted(rows, reverse=True))


def chunks(layout: Layout) -> list[tuple[int, int, int, int]]:
    return [(c.first, c.last, c.rows, c.length) for c in layout.chunks]


def test_a_layout_by_hand() -> None:
    """Rows of 20 and 19 waste 1 position of 40; with the row of 5 it would be 16 of 60."""
    layout = layout_of([20, 19, 5], CPU)
    assert layout.position_ids.tolist() == [[*range(20), *range(19), *range(5)]]
    assert layout.boundaries.tolist() == [0, 20, 39, 44]
    assert layout.longest == 20
    assert chunks(layout) == [(0, 39, 2, 20), (39, 44, 1, 5)]
    assert layout.attended == 45
    padded, alone = layout.chunks
    assert padded.spread is not None
    assert padded.spread.tolist() == [*range(20), *range(20, 39), 38]  # the last token stands in behind the end
    assert padded.gathered is not None
    assert padded.gathered.tolist() == [*range(39)]
    assert alone.spread is alone.gathered is None


def test_rows_of_one_length_are_not_moved() -> None:
    [chunk] = layout_of([7, 7, 7], CPU).chunks
    assert (chunk.rows, chunk.length, chunk.spread, chunk.gathered) == (3, 7, None, None)


@given(LENGTHS)
def test_every_token_is_in_one_chunk_and_padding_is_bounded(lengths: list[int]) -> None:
    layout = layout_of(lengths, CPU)
    ends = [0, *(c.last for c in layout.chunks)]
    assert [c.first for c in layout.chunks] == ends[:-1]
    assert ends[-1] == sum(lengths)
    assert sum(c.rows for c in layout.chunks) == len(lengths)
    assert 1 - sum(lengths) / layout.attended <= MAX_PADDING + 1e-9


@given(LENGTHS)
def test_what_is_spread_is_gathered_again(lengths: list[int]) -> None:
    layout, tokens = layout_of(lengths, CPU), torch.arange(sum(lengths))
    back = []
    for chunk in layout.chunks:
        own = tokens[chunk.first : chunk.last]
        if chunk.spread is not None and chunk.gathered is not None:
            own = own[chunk.spread][chunk.gathered]
        back.append(own)
    assert torch.cat(back).equal(tokens)
