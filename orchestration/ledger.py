"""Every ticket's fate, in one SQLite file of the run: issued once, ended once.

    in_flight -> queued | filtered | stale | failed | cancelled
    queued    -> trained | stale | filtered | cancelled | in_flight (its group was lost with the queue)

The other states are final. The number of tickets issued is counted apart from the rows, so that the balance
`issued == trained + filtered + stale + failed + cancelled + queued + in_flight` can fail when something is lost.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from configs.shown import safe
from envs.trajectory import Ticket


class State(StrEnum):
    """Where a ticket is."""

    IN_FLIGHT = "in_flight"
    QUEUED = "queued"
    TRAINED = "trained"
    FILTERED = "filtered"
    STALE = "stale"
    FAILED = "failed"
    CANCELLED = "cancelled"


# state -> the states it may be reached from
_REACHED_FROM: dict[State, tuple[State, ...]] = {
    State.IN_FLIGHT: (),
    State.QUEUED: (State.IN_FLIGHT,),
    State.TRAINED: (State.QUEUED,),
    State.FILTERED: (State.IN_FLIGHT, State.QUEUED),
    State.STALE: (State.IN_FLIGHT, State.QUEUED),
    State.FAILED: (State.IN_FLIGHT,),
    State.CANCELLED: (State.IN_FLIGHT, State.QUEUED),
}

_TABLES = f"""
CREATE TABLE IF NOT EXISTS tickets (
    ticket INTEGER PRIMARY KEY,
    env TEXT NOT NULL,
    seed INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 1,
    state TEXT NOT NULL DEFAULT 'in_flight' CHECK (state IN ({", ".join(repr(str(state)) for state in State)})),
    policy_version_at_issue INTEGER NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    issued_at REAL NOT NULL,  -- seconds since 1970
    moved_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS totals (only INTEGER PRIMARY KEY CHECK (only = 0), issued INTEGER NOT NULL);
INSERT OR IGNORE INTO totals VALUES (0, 0);
"""


class LedgerError(RuntimeError):
    """A ticket issued twice, moved where it may not go, or lost."""


@dataclass(frozen=True, slots=True)
class LedgerCounts:
    """How many tickets were issued, and how many are in each state."""

    issued: int
    trained: int
    filtered: int
    stale: int
    failed: int
    cancelled: int
    queued: int
    in_flight: int

    @property
    def accounted(self) -> int:
        ended = self.trained + self.filtered + self.stale + self.failed + self.cancelled
        return ended + self.queued + self.in_flight

    @property
    def balanced(self) -> bool:
        return self.issued == self.accounted

    def check(self) -> None:
        """Raises LedgerError with the sums where they differ."""
        if not self.balanced:
            raise LedgerError(
                f"the ledger does not balance: issued {self.issued}, but trained {self.trained} + filtered "
                f"{self.filtered} + stale {self.stale} + failed {self.failed} + cancelled {self.cancelled} + queued "
                f"{self.queued} + in_flight {self.in_flight} = {self.accounted}"
            )


class Ledger:
    """The ledger at `path`, made when missing. A call is one transaction: it happens whole or not at all.

    Every change is on disk when a process dies; the last ones may be missing when the machine does (WAL, synchronous
    NORMAL), never half of one. For one thread. Raises LedgerError where the file is no ledger.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.exists() and not path.is_file():
            raise LedgerError(f"{path}: no ledger: it is no file")  # SQLite would wait for a pipe's other end
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_TABLES)
        except sqlite3.Error as error:
            raise LedgerError(f"{path}: no ledger: {error}") from error

    def issue(self, ticket: Ticket, version: int) -> None:
        """Enter a ticket as in flight; `version`: the policy's at this moment. Raises LedgerError if issued before."""
        now = time.time()
        row = (ticket.index, ticket.env, ticket.seed, ticket.attempt + 1, version, now, now)
        columns = "ticket, env, seed, attempts, policy_version_at_issue, issued_at, moved_at"
        with self._transaction():
            try:
                self._db.execute(f"INSERT INTO tickets ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError as error:
                raise LedgerError(
                    f"ticket {ticket.index} is issued twice: it is {self._state(ticket.index)}"
                ) from error
            self._db.execute("UPDATE totals SET issued = issued + 1")

    def retry(self, index: int, cause: str) -> Ticket:
        """Another attempt of a ticket in flight, or of one whose group was lost with the queue; it is in flight again.

        Raises LedgerError where it is neither.
        """
        with self._transaction():
            changed = self._db.execute(
                "UPDATE tickets SET attempts = attempts + 1, state = ?, reason = ?, moved_at = ? "
                "WHERE ticket = ? AND state IN (?, ?) RETURNING env, seed, attempts",
                (State.IN_FLIGHT, safe(cause), time.time(), index, State.IN_FLIGHT, State.QUEUED),
            ).fetchone()
            if changed is None:
                raise LedgerError(f"ticket {index} cannot be tried again: it is {self._state(index)}")
        env, seed, attempts = changed
        return Ticket(index, env, seed, attempts - 1)

    def move(self, indices: Sequence[int], state: State, reason: str = "") -> None:
        """Move tickets to `state`, all or none. Raises LedgerError with the first that may not go there."""
        origins = _REACHED_FROM[state]
        marks = ", ".join("?" * len(origins))
        statement = f"UPDATE tickets SET state = ?, reason = ?, moved_at = ? WHERE ticket = ? AND state IN ({marks})"
        now, reason = time.time(), safe(reason)
        with self._transaction():
            for index in indices:
                if not self._db.execute(statement, (state, reason, now, index, *origins)).rowcount:
                    raise LedgerError(f"ticket {index} cannot become {state}: it is {self._state(index)}")

    def indices(self, *states: State) -> list[int]:
        """The tickets in any of these states, in order."""
        marks = ", ".join("?" * len(states))
        rows = self._db.execute(f"SELECT ticket FROM tickets WHERE state IN ({marks}) ORDER BY ticket", states)
        return [index for (index,) in rows]

    def tickets(self, state: State) -> list[Ticket]:
        """The tickets in this state, in order, each as its last attempt was issued."""
        rows = self._db.execute(
            "SELECT ticket, env, seed, attempts FROM tickets WHERE state = ? ORDER BY ticket", [state]
        )
        return [Ticket(index, env, seed, attempts - 1) for index, env, seed, attempts in rows]

    def backup(self, path: Path) -> None:
        """Copy the ledger as it is at this moment to a file of its own. Raises LedgerError, such as for a full disk."""
        try:
            with closing(sqlite3.connect(path)) as copy:
                self._db.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        except sqlite3.Error as error:
            raise LedgerError(f"{path}: {error}") from error

    def counts(self) -> LedgerCounts:
        """How many tickets are where."""
        with self._transaction():
            states = dict(self._db.execute("SELECT state, COUNT(*) FROM tickets GROUP BY state"))
            (issued,) = self._db.execute("SELECT issued FROM totals").fetchone()
        return LedgerCounts(issued=issued, **{state.value: states.get(state, 0) for state in State})

    def close(self) -> None:
        """Fold the log into the one file and let go of it."""
        self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _state(self, index: int) -> str:
        row = self._db.execute("SELECT state FROM tickets WHERE ticket = ?", (index,)).fetchone()
        return row[0] if row else "unknown"

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except (sqlite3.Error, OverflowError) as error:
            raise LedgerError(f"{self._path}: {error}") from error
