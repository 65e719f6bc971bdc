"""Pieces in one sequence: positions, chunks that attend together, and a padding that is bounded."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.layout import MAX_PADDING, Layout, Piece, layout_of

CPU = torch.device("cpu")


@st.composite
def units(draw: st.DrawFn) -> list[Piece]:
    """Rows alone, and rows behind a beginning they share."""
    pieces, end = [], 0
    for lengths in draw(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=6), min_size=1, max_size=6)):
        prefix, start = draw(st.integers(0, 9)), end
        if prefix:
            pieces.append(Piece(start, prefix))
            end += prefix
        for length in lengths:
            pieces.append(Piece(end, length, start, prefix))
            end += length
    return pieces


def alone(*lengths: int) -> list[Piece]:
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [Piece(start, length) for start, length in zip(starts, lengths, strict=True)]


def sizes(layout: Layout) -> list[tuple[int, int]]:
    return [(c.pieces, c.length) for c in layout.chunks]


def test_rows_of_like_length_attend_together() -> None:
    """Rows of 20 and 19 waste 1 position of 40; with the row of 5 it would be 16 of 60."""
    layout = layout_of(alone(5, 20, 19), CPU)
    assert layout.position_ids.tolist() == [[*range(5), *range(20), *range(19)]]
    assert sizes(layout) == [(2, 20), (1, 5)]
    assert layout.attended == 45
    both, single = layout.chunks
    assert both.queries.tolist() == [*range(5, 25), *range(25, 44), 43]  # the last token stands in behind the end
    assert both.keys.equal(both.queries)
    assert (both.mask, single.queries.tolist()) == (None, [*range(5)])
    assert layout.gathered.tolist() == [*range(40, 45), *range(20), *range(20, 39)]
    assert layout.longest == (20, 20)


def test_a_piece_sees_its_prefix_and_itself() -> None:
    """A beginning of two tokens, then pieces of two and of two behind it."""
    layout = layout_of([Piece(0, 2), Piece(2, 2, 0, 2), Piece(4, 2, 0, 2)], CPU)
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 2, 3]]
    beginning, ends = layout.chunks
    assert (beginning.pieces, beginning.length, beginning.mask) == (1, 2, None)
    assert ends.queries.tolist() == [2, 3, 4, 5]
    assert ends.keys.tolist() == [0, 1, 2, 3, 0, 1, 4, 5]
    assert ends.mask is not None
    assert ends.mask.tolist() == [[True, True, True, False], [True, True, True, True]]
    assert layout.keys.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 4, 5]
    assert layout.query_ends.tolist() == [0, 2, 4, 6]
    assert layout.key_ends.tolist() == [0, 2, 6, 10]
    assert layout.longest == (2, 4)


@given(units())
def test_every_token_is_a_query_once_and_padding_is_bounded(pieces: list[Piece]) -> None:
    layout, tokens = layout_of(pieces, CPU), sum(piece.length for piece in pieces)
    assert torch.cat([chunk.queries for chunk in layout.chunks])[layout.gathered].equal(torch.arange(tokens))
    assert 1 - tokens / layout.attended <= MAX_PADDING + 1e-9


@given(units())
def test_what_a_query_sees_is_its_row_up_to_itself(pieces: list[Piece]) -> None:
    """Positions of the keys a query sees, where it is no stand-in, are 0 up to its own."""
    layout = layout_of(pieces, CPU)
    positions = layout.position_ids[0]
    for chunk in layout.chunks:
        keys = positions[chunk.keys].view(chunk.pieces, -1)
        queries = positions[chunk.queries].view(chunk.pieces, -1)
        n = chunk.length
        mask = torch.ones(n, n, dtype=torch.bool).tril() if chunk.mask is None else chunk.mask
        for piece in range(chunk.pieces):
            for q in range(n):
                if q == 0 or queries[piece, q] != queries[piece, q - 1]:
                    assert keys[piece][mask[q]].tolist() == list(range(int(queries[piece, q]) + 1))
