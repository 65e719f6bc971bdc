"""The ledger: each ticket once in, once out, whatever happens in between."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.trajectory import Ticket
from orchestration.ledger import Ledger, LedgerCounts, LedgerError, State

FINAL = (State.TRAINED, State.FILTERED, State.STALE, State.FAILED, State.CANCELLED)
LEGAL = {
    State.IN_FLIGHT: {State.QUEUED, State.FILTERED, State.STALE, State.FAILED, State.CANCELLED},
    State.QUEUED: {State.TRAINED, State.STALE, State.FILTERED, State.CANCELLED},
}


def ticket(index: int) -> Ticket:
    return Ticket(index, "frozen_lake", 1000 + index)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as ledger:
        yield ledger


def bring(ledger: Ledger, index: int, state: State) -> None:
    """Issue a ticket and move it to `state` on a legal way."""
    ledger.issue(ticket(index), 0)
    if state is State.TRAINED:
        ledger.move([index], State.QUEUED)
    if state is not State.IN_FLIGHT:
        ledger.move([index], state)


def test_what_is_kept_of_a_ticket(ledger: Ledger, path: Path) -> None:
    before = time.time()
    ledger.issue(Ticket(7, "frozen_lake", 11), 3)
    ledger.retry(7, "actor died")
    ledger.move([7], State.FAILED, "three actors died")
    with sqlite3.connect(path) as reader:
        reader.row_factory = sqlite3.Row
        row = dict(reader.execute("SELECT * FROM tickets").fetchone())
    reader.close()
    assert before - 1 <= row.pop("issued_at") <= row.pop("moved_at") <= time.time()
    assert row == {
        "ticket": 7,
        "env": "frozen_lake",
        "seed": 11,
        "attempts": 2,
        "state": "failed",
        "policy_version_at_issue": 3,
        "reason": "three actors died",
    }


@pytest.mark.parametrize("origin", State)
@pytest.mark.parametrize("target", State)
def test_only_legal_moves_are_made(ledger: Ledger, origin: State, target: State) -> None:
    bring(ledger, 5, origin)
    if target in LEGAL.get(origin, ()):
        ledger.move([5], target)
        assert ledger.indices(target) == [5]
    else:
        with pytest.raises(LedgerError, match=f"ticket 5 cannot become {target}: it is {origin}"):
            ledger.move([5], target)
        assert ledger.indices(origin) == [5]


def test_a_move_happens_whole_or_not_at_all(ledger: Ledger) -> None:
    for index in range(3):
        ledger.issue(ticket(index), 0)
    ledger.move([1], State.CANCELLED)
    for indices in ([0, 1, 2], [0, 0], [0, 99]):
        with pytest.raises(LedgerError):
            ledger.move(indices, State.QUEUED)
    assert ledger.indices(State.IN_FLIGHT) == [0, 2]
    ledger.move([], State.QUEUED)
    assert ledger.counts().queued == 0


def test_a_ticket_is_issued_once(ledger: Ledger) -> None:
    bring(ledger, 4, State.TRAINED)
    with pytest.raises(LedgerError, match="ticket 4 is issued twice: it is trained"):
        ledger.issue(ticket(4), 1)
    assert ledger.counts().issued == 1


@pytest.mark.parametrize("origin", [State.IN_FLIGHT, State.QUEUED])
def test_another_attempt_is_the_same_ticket_in_flight_again(ledger: Ledger, origin: State) -> None:
    bring(ledger, 4, origin)
    assert ledger.retry(4, "its actor died") == replace(ticket(4), attempt=1)
    assert ledger.retry(4, "its actor died") == replace(ticket(4), attempt=2)
    assert ledger.tickets(State.IN_FLIGHT) == [replace(ticket(4), attempt=2)]
    assert ledger.counts() == LedgerCounts(1, 0, 0, 0, 0, 0, 0, in_flight=1)
    ledger.move([4], State.QUEUED)
    ledger.move([4], State.TRAINED)
    assert ledger.counts().trained == 1


def test_unknown_tickets_are_named(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="ticket 9 cannot become queued: it is unknown"):
        ledger.move([9], State.QUEUED)
    with pytest.raises(LedgerError, match="ticket 9 cannot be tried again: it is unknown"):
        ledger.retry(9, "why not")


@pytest.mark.parametrize("state", FINAL)
def test_a_ticket_that_has_its_end_is_not_tried_again(ledger: Ledger, state: State) -> None:
    bring(ledger, 2, state)
    with pytest.raises(LedgerError, match=f"ticket 2 cannot be tried again: it is {state}"):
        ledger.retry(2, "why not")


def test_a_number_that_sqlite_cannot_hold_is_an_error_of_the_ledger(ledger: Ledger) -> None:
    with pytest.raises(LedgerError):
        ledger.issue(Ticket(1, "frozen_lake", 2**64), 0)
    assert ledger.counts().issued == 0


def test_counts_say_every_state(ledger: Ledger) -> None:
    for index, state in enumerate(State):
        bring(ledger, index, state)
    counts = ledger.counts()
    assert counts == LedgerCounts(7, 1, 1, 1, 1, 1, 1, 1)
    assert counts.balanced
    counts.check()


def test_a_lost_ticket_is_noticed(ledger: Ledger, path: Path) -> None:
    for index in range(3):
        ledger.issue(ticket(index), 0)
    with sqlite3.connect(path) as writer:
        writer.execute("DELETE FROM tickets WHERE ticket = 1")
    writer.close()
    assert not ledger.counts().balanced
    with pytest.raises(LedgerError, match=r"issued 3, but trained 0 \+ .* \+ in_flight 2 = 2"):
        ledger.counts().check()


def test_a_missing_count_is_noticed() -> None:
    counts = LedgerCounts(6, 1, 1, 1, 1, 1, 1, 0)
    counts.check()
    with pytest.raises(LedgerError, match="issued 7"):
        replace(counts, issued=7).check()


def test_a_ledger_opened_again_goes_on(path: Path) -> None:
    first = Ledger(path)
    bring(first, 0, State.QUEUED)
    bring(first, 1, State.IN_FLIGHT)
    second = Ledger(path)  # the first was never closed: its process died
    assert second.indices(State.QUEUED, State.IN_FLIGHT) == [0, 1]
    second.move(second.indices(State.QUEUED, State.IN_FLIGHT), State.CANCELLED, "lost with its process")
    second.issue(ticket(2), 4)
    assert second.counts() == LedgerCounts(3, 0, 0, 0, 0, 2, 0, 1)
    second.close()
    first.close()
    assert [p.name for p in path.parent.iterdir()] == ["ledger.sqlite"]


def test_another_file_is_no_ledger(path: Path) -> None:
    path.write_text("something else, and long enough to be looked at as a database" * 20)
    with pytest.raises(LedgerError, match=r"ledger.sqlite: no ledger"):
        Ledger(path)
    with pytest.raises(LedgerError, match="no ledger"):
        Ledger(path.parent / "missing" / "ledger.sqlite")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["issue", "retry", "move"]), st.lists(st.integers(0, 5), min_size=1, max_size=3)
        ).flatmap(lambda call: st.tuples(st.just(call[0]), st.just(call[1]), st.sampled_from(State))),
        max_size=30,
    )
)
def test_any_sequence_of_calls_keeps_the_balance(calls: list[tuple[str, list[int], State]]) -> None:
    """Against a dictionary: the same calls are refused, the rest end in the same states."""
    ledger = Ledger(Path(":memory:"))
    states: dict[int, State] = {}
    for call, indices, target in calls:
        index = indices[0]
        if call == "issue":
            legal = index not in states
        elif call == "retry":
            legal = states.get(index) in (State.IN_FLIGHT, State.QUEUED)
        else:
            origins = [states.get(i) for i in indices]
            legal = len(set(indices)) == len(indices) and all(o and target in LEGAL.get(o, ()) for o in origins)
        try:
            if call == "issue":
                ledger.issue(ticket(index), 0)
            elif call == "retry":
                ledger.retry(index, "again")
            else:
                ledger.move(indices, target)
        except LedgerError:
            assert not legal
        else:
            assert legal
            states.update(dict.fromkeys(indices, target) if call == "move" else {index: State.IN_FLIGHT})
        counts = ledger.counts()
        counts.check()
        assert {s: getattr(counts, s) for s in State if getattr(counts, s)} == Counter(states.values())
        assert counts.issued == len(states)
    ledger.close()


def test_final_states_are_final() -> None:
    assert not set(FINAL) & set(LEGAL)


def test_it_is_fast_enough(ledger: Ledger) -> None:
    """2,000 tickets in batches of 16, a commit a call. Measured: 20,000 transitions/s and more; under 500 is a bug."""
    start = time.perf_counter()
    for first in range(0, 2000, 16):
        indices = range(first, first + 16)
        for index in indices:
            ledger.issue(ticket(index), 0)
        ledger.move(indices, State.QUEUED)
        ledger.move(indices, State.TRAINED)
    assert 3 * 2000 / (time.perf_counter() - start) > 500


def test_tickets_in_a_state_are_as_their_last_attempt_was(ledger: Ledger) -> None:
    for index in (3, 1, 2):
        ledger.issue(ticket(index), version=0)
    ledger.retry(1, "boom")
    ledger.move([2], State.QUEUED)
    assert ledger.tickets(State.IN_FLIGHT) == [replace(ticket(1), attempt=1), ticket(3)]
    assert ledger.tickets(State.FAILED) == []


def test_a_backup_is_one_file_of_that_moment(ledger: Ledger, tmp_path: Path) -> None:
    ledger.issue(ticket(0), version=0)
    folder = tmp_path / "copies"
    folder.mkdir()
    ledger.backup(folder / "copy.sqlite")
    ledger.issue(ticket(1), version=0)
    assert [p.name for p in folder.iterdir()] == ["copy.sqlite"]
    with Ledger(folder / "copy.sqlite") as copy:
        assert copy.counts() == LedgerCounts(1, 0, 0, 0, 0, 0, 0, in_flight=1)
    assert ledger.counts().issued == 2


def test_a_backup_that_cannot_be_written_is_said(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"nowhere/copy.sqlite: unable to open"):
        ledger.backup(tmp_path / "nowhere" / "copy.sqlite")


def test_a_pipe_is_no_ledger_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ledger.sqlite")
    with pytest.raises(LedgerError, match=r"ledger\.sqlite: no ledger: it is no file"):
        Ledger(tmp_path / "ledger.sqlite")
