"""Schedules of faults and what is kept of them, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.chaos.__main__ import drawn, figures_of, in_words, kept
from tests.chaos.faults import AT_BROADCAST, AT_TICKET, FROM_WITHOUT, NOT_DRAWN, Kind
from tests.chaos.harness import ACTORS, GROUPS, RANKS, UPDATES


def done(seed: int, **others: Any) -> dict[str, Any]:
    return {
        "seed": seed, "seconds": 60.0, "faults": in_words(drawn(seed)), "took_place": ["exit", "poison"], "said": "ok",
        "actors_lost": 2, "recovered_s": {"rollout actor": [9.0], "learner": []}, **others,
    }  # fmt: skip


def test_every_kind_is_drawn_and_each_where_it_can_take_place() -> None:
    faults = [fault for seed in range(300) for fault in drawn(seed)]
    assert set(Kind) == {*AT_TICKET, *AT_BROADCAST, Kind.DISK_FULL, *FROM_WITHOUT}
    assert {fault.kind for fault in faults} == set(Kind) - set(NOT_DRAWN)
    assert all(0 <= fault.at < UPDATES * GROUPS for fault in faults if fault.kind in AT_TICKET)
    assert all(1 <= fault.at < UPDATES for fault in faults if fault.kind not in AT_TICKET)
    assert max(fault.at for fault in faults if fault.kind is Kind.DISK_FULL) == UPDATES - 2
    assert {fault.whom for fault in faults if fault.kind not in AT_TICKET} == set(range(max(ACTORS, RANKS)))
    assert drawn(7) == drawn(7) != drawn(8)


def test_what_was_drawn_otherwise_before_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "chaos.json"
    assert kept(path) == []
    schedules = [done(0), done(1, faults=["exit at 99"]), {k: v for k, v in done(2).items() if k != "took_place"}]
    path.write_text(json.dumps({"schedules": schedules}))
    assert [one["seed"] for one in kept(path)] == [0]


def test_figures_are_of_faults_that_took_place() -> None:
    figures = figures_of([done(0), done(1, said="WRONG: a ticket was lost", took_place=["exit"])])
    assert (figures["wrong"], figures["faults"], figures["actors_lost"]) == (1, {"exit": 2, "poison": 1}, 4)
    assert figures["recovered_s"]["rollout actor"] == {"times": 2, "median": 9.0, "most": 9.0}
    assert figures["recovered_s"]["learner"] == {"times": 0, "median": None, "most": None}
