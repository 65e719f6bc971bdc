"""How rows lie end to end in one sequence, and which of them attend together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Share of the positions of an attention call that may be no tokens.
MAX_PADDING = 0.05


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows [first token, last token) that attend together as (rows, length).

    spread: (rows * length,) place of each padded position in the chunk, a row's last token standing in behind its end;
    gathered: (tokens,) place of each token among the padded ones. Both None where all rows are equally long.
    """

    first: int
    last: int
    rows: int
    length: int
    spread: Tensor | None
    gathered: Tensor | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where rows lie in a sequence of T tokens. position_ids: (1, T), from 0 in each row. boundaries: (rows + 1,)."""

    position_ids: Tensor
    boundaries: Tensor
    longest: int
    chunks: tuple[Chunk, ...]

    @property
    def attended(self) -> int:
        """Positions that attention works through, padding included."""
        return sum(chunk.rows * chunk.length for chunk in self.chunks)


def layout_of(lengths: Sequence[int], device: torch.device) -> Layout:
    """lengths: tokens of each row, in the order they lie; neighbours of like length share a chunk."""
    boundaries = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    chunks = tuple(_chunk(lengths, first, last, boundaries, device) for first, last in _runs(lengths))
    return Layout(positions.to(device), boundaries.to(device), max(lengths), chunks)


def _runs(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rows [first, last) that may be padded to their longest within MAX_PADDING."""
    first = 0
    for last in range(1, len(lengths) + 1):
        rows = lengths[first : last + 1]
        if last == len(lengths) or sum(rows) < (1 - MAX_PADDING) * len(rows) * max(rows):
            yield first, last
            first = last


def _chunk(lengths: Sequence[int], first: int, last: int, boundaries: Tensor, device: torch.device) -> Chunk:
    own = torch.tensor(lengths[first:last])
    longest, begin = int(own.max()), int(boundaries[first])
    spread = gathered = None
    if int(own.min()) < longest:
        place, start = torch.arange(longest), (boundaries[first:last].long() - begin).unsqueeze(1)
        spread = (start + torch.minimum(place, own.unsqueeze(1) - 1)).flatten().to(device)
        gathered = (place < own.unsqueeze(1)).flatten().nonzero().squeeze(1).to(device)
    return Chunk(begin, int(boundaries[last]), last - first, longest, spread, gathered)
