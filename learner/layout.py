"""How rows lie in one sequence, shared beginnings once, and which of them attend together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Share of the positions of an attention call that may be no tokens.
MAX_PADDING = 0.05


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` tokens that lie together from `start` on and see the `prefix` tokens from `prefix_start` on before them.

    A row is one piece, or the end of one behind a beginning that other rows share, which is a piece of its own.
    """

    start: int
    length: int
    prefix_start: int = 0
    prefix: int = 0


@dataclass(frozen=True)
class Chunk:
    """Pieces that attend together: (pieces, length) queries on (pieces, prefix + length) keys.

    queries, keys: (pieces * length,) and (pieces * (prefix + length),) places in the sequence; behind a piece's end its
    last token stands in.
    """

    pieces: int
    length: int
    prefix: int
    queries: Tensor
    keys: Tensor

    @cached_property
    def mask(self) -> Tensor | None:
        """(length, prefix + length), what a query sees; None where that is plainly causal.

        Made when it is first asked for: the flash kernel needs none, and of long rows they are gigabytes an update.
        """
        if not self.prefix:
            return None
        shape = (self.length, self.prefix + self.length)
        return torch.ones(shape, dtype=torch.bool, device=self.queries.device).tril(self.prefix)


@dataclass(frozen=True, slots=True)
class Layout:
    """A sequence of T tokens for attention. position_ids: (1, T), of each token in its row.

    gathered: (T,) place of each token among the queries of all chunks. keys: places in the sequence that the pieces
    see, one piece after another; query_ends, key_ends: (pieces + 1,) where they end. longest: most queries and keys of
    a piece.
    """

    position_ids: Tensor
    chunks: tuple[Chunk, ...]
    gathered: Tensor
    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest: tuple[int, int]

    @property
    def attended(self) -> int:
        """Queries that attention works through, padding included."""
        return sum(chunk.pieces * chunk.length for chunk in self.chunks)


def layout_of(pieces: Sequence[Piece], device: torch.device) -> Layout:
    """pieces: in the order they lie, without gaps."""
    alike = sorted(pieces, key=lambda p: (p.prefix, -p.length, p.start))
    runs = [alike[first:last] for first, last in _runs(alike)]
    chunks = tuple(_chunk(run, device) for run in runs)
    seen = [_places(p, p.length) for p in pieces]
    return Layout(
        position_ids=torch.cat([torch.arange(p.prefix, p.prefix + p.length) for p in pieces]).unsqueeze(0).to(device),
        chunks=chunks,
        gathered=_gathered(runs, sum(p.length for p in pieces)).to(device),
        keys=torch.cat(seen).to(device),
        query_ends=_ends([p.length for p in pieces], device),
        key_ends=_ends([len(places) for places in seen], device),
        longest=(max(p.length for p in pieces), max(map(len, seen))),
    )


def _runs(pieces: Sequence[Piece]) -> Iterator[tuple[int, int]]:
    """Pieces [first, last) behind prefixes of one length that may be padded to their longest within MAX_PADDING."""
    first = 0
    for last in range(1, len(pieces) + 1):
        run = pieces[first : last + 1]
        if last == len(pieces) or run[-1].prefix != run[0].prefix or _padding(run) > MAX_PADDING:
            yield first, last
            first = last


def _padding(run: Sequence[Piece]) -> float:
    return 1 - sum(p.length for p in run) / (len(run) * max(p.length for p in run))


def _chunk(run: Sequence[Piece], device: torch.device) -> Chunk:
    length, prefix = max(p.length for p in run), run[0].prefix
    keys = torch.cat([_places(p, length) for p in run]).to(device)
    queries = torch.cat([_places(p, length)[prefix:] for p in run]).to(device)
    return Chunk(len(run), length, prefix, queries, keys)


def _places(piece: Piece, length: int) -> Tensor:
    """Where a piece's prefix and tokens lie, its last token repeated up to `length`."""
    own = piece.start + torch.arange(length).clamp(max=piece.length - 1)
    return torch.cat([torch.arange(piece.prefix_start, piece.prefix_start + piece.prefix), own])


def _gathered(runs: Sequence[Sequence[Piece]], tokens: int) -> Tensor:
    gathered, begin = torch.empty(tokens, dtype=torch.long), 0
    for run in runs:
        length = max(p.length for p in run)
        for piece in run:
            gathered[piece.start : piece.start + piece.length] = torch.arange(begin, begin + piece.length)
            begin += length
    return gathered


def _ends(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
