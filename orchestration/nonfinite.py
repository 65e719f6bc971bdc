"""Updates whose loss or gradient was no number: left out by the learner, kept for inspection, bounded in a row."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgpack

from configs.files import read_file
from envs.codec import read_messages
from learner.durable import replace_durably
from learner.update_sums import UpdateSums
from orchestration.learners import DivergedError


class NonfiniteGuard:
    """folder: where batches go, made with the first. limit: updates in a row after which the run stops.

    in_a_row: those so far, which a checkpoint keeps.
    """

    def __init__(self, folder: Path, limit: int, in_a_row: int = 0) -> None:
        self._folder, self._limit = folder, limit
        self.in_a_row = in_a_row

    async def look_at(self, update: int, sums: UpdateSums, groups: Sequence[bytes]) -> Path | None:
        """Keep the encoded groups of an update without a step; the file. Raises LearnerError at the limit."""
        if sums.steps:
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        path = self._folder / f"update-{update:06d}.msgpack"
        await asyncio.to_thread(_write, path, groups)
        if self.in_a_row >= self._limit:
            raise DivergedError(
                f"{self.in_a_row} updates in a row without a finite loss and gradient (optim.max_nonfinite): the "
                f"weights are as they were before; look at the batches in {self._folder}, lower optim.lr, or go on "
                "from an earlier checkpoint"
            )
        return path


def read_batch(path: Path) -> list[bytes]:
    """The encoded groups of a kept batch, for `envs.codec.decode_group`. Raises OSError or CodecError."""
    return read_messages(read_file(path, 2**34))


def _write(path: Path, groups: Sequence[bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    replace_durably(path, msgpack.packb(list(groups)))
