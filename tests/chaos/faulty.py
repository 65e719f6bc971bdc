"""Entry point: `python -m tests.chaos.faulty FAULTS.json ...` is orchestration/run.py with faults from within.

The run's own classes are used, with their calls wrapped: an actor does what its tickets' faults ask for, and a rank
writes down which tickets it trained on in which update.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from actors import rollout_actor, weight_receiver
from actors.engine import EngineError
from actors.received import Received
from actors.rollout_actor import RolloutActor
from envs.codec import read_header
from envs.trajectory import Group, Ticket
from learner.rank import LearnerRank
from learner.update_sums import UpdateSums
from orchestration import run, session
from tests.chaos.faults import AT_BROADCAST, AT_QUEUE, AT_TICKET, IN_ENV, Kind, read
from tests.chaos.faulty_env import FAULTS, FOR_EVER_S, make, once

TRAINED = "SESA_CHAOS_TRAINED"


class FaultyActor(RolloutActor):
    """Number `index` of the actors."""

    def __init__(self, config: Any, policy: str, index: int, *others: Any) -> None:
        rollout_actor.make_env = make  # looked up there when the environment workers are made
        super().__init__(config, policy, index, *others)
        faults = read(Path(os.environ[FAULTS]))
        self._at_tickets = [fault for fault in faults if fault.kind in AT_TICKET]  # a ticket may meet several
        self._at_broadcasts = [fault for fault in faults if fault.kind in AT_BROADCAST and fault.whom == index]
        self._put = self._outbox.put
        self._outbox.put = self._put_faultily  # type: ignore[method-assign]

    async def _sample_group(self, ticket: Ticket, sampler: Any) -> Group:
        for kind in (fault.kind for fault in self._at_tickets if fault.at == ticket.index):
            if kind is Kind.POISON or (kind not in (*AT_QUEUE, *IN_ENV) and once(f"{kind} {ticket.index}")):
                await self._fail(kind)
        return await super()._sample_group(ticket, sampler)

    async def _fail(self, kind: Kind) -> None:
        if kind in (Kind.EXIT, Kind.POISON):
            os._exit(1)
        if kind in (Kind.ENGINE_HANGS, Kind.ENGINE_RAISES):
            await self._engine._thread.call(_breaking_next_step(self._engine._thread, kind))

    async def _put_faultily(self, data: bytes, era: int) -> str:
        """What is to go wrong with a ticket's message goes wrong with the first one from there on: its own may be
        filtered, and a message that nobody sends cannot be damaged."""
        sent = read_header(data).index
        kinds = {
            fault.kind
            for fault in self._at_tickets
            if fault.kind in AT_QUEUE and fault.at <= sent and once(f"{fault.kind} {fault.at}")
        }
        if Kind.CORRUPT in kinds:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
        name = await self._put(data, era)
        if Kind.QUEUED_EXIT in kinds:
            os._exit(1)
        return name

    async def update_weights(self, update_info: Any, version: int) -> Received:
        due = [fault for fault in self._at_broadcasts if fault.at <= version and once(f"{fault.kind} {fault.at}")]
        for kind in (fault.kind for fault in due):
            if kind is Kind.BROADCAST_EXIT:
                os._exit(1)
            if kind is Kind.BROADCAST_RAISES:
                raise EngineError("no memory left for the weights")
            weight_receiver.unpacked = lambda *_: os._exit(1)  # of the first bucket
        return await super().update_weights(update_info, version)


def _breaking_next_step(thread: Any, kind: Kind) -> Any:
    def step() -> None:
        if kind is Kind.ENGINE_RAISES:
            raise RuntimeError("a kernel failed")
        # Keeps the interpreter's lock, as a kernel that never ends would.
        ctypes.PyDLL(None).sleep(FOR_EVER_S)

    def break_step() -> None:
        thread.engine.step = step

    return break_step


class RecordingRank(LearnerRank):
    """Rank 0 appends a line an update: the version before it and the tickets of its batch."""

    def connect(self, *group: Any) -> None:
        if self._rank == 0:
            from learner import weight_sender

            # A bucket for each: the small policy would be one, and nothing half-way.
            weight_sender.cut = lambda sizes, limit_bytes: [1] * len(sizes)
        super().connect(*group)

    def save(self, folder: str) -> None:
        faults = [f for f in read(Path(os.environ[FAULTS])) if f.kind is Kind.DISK_FULL and f.whom == self._rank]
        if not any(fault.at <= self.version and once(f"{fault.kind} {fault.at}") for fault in faults):
            super().save(folder)
            return
        write = os.write
        os.write = partial(_write_half, write)
        try:
            super().save(folder)
        finally:
            os.write = write

    def update(self, payloads: Sequence[bytes]) -> UpdateSums:
        version = self.version
        sums = super().update(payloads)
        if self._rank == 0:
            line = {"version": version, "tickets": [read_header(data).index for data in payloads], "steps": sums.steps}
            with Path(os.environ[TRAINED]).open("a") as file:
                file.write(json.dumps(line) + "\n")
        return sums


def _write_half(write: Callable[[int, Any], int], handle: int, data: Any) -> int:
    """As a disk does that is full then. Raises OSError."""
    write(handle, data[: len(data) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def main(argv: Sequence[str]) -> int:
    session.RolloutActor, session.LearnerRank = FaultyActor, RecordingRank  # type: ignore[assignment, misc]
    return run.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
