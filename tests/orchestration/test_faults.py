"""Faults in real runs: nothing is lost, nothing trained twice, the figures stay those of one policy, and training ends.

What is looked at after each run is in tests/chaos/harness.py; here is what its log and folder say beside.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.chaos.faults import Fault, Kind, schedule
from tests.chaos.harness import ACTORS, GROUPS, RANKS, RECOVERIES, UPDATES, Ordeal

pytestmark = [pytest.mark.real, pytest.mark.timeout(500)]

MOST_S = 60.0  # until the learner is up again
BESIDE_S = 10.0  # what the fault of an actor may cost beside a start of its engine


def undergo(path: Path, policy: Path, *faults: Fault, settings: tuple[str, ...] = ()) -> str:
    """A run in which each of these faults took place; all that it said."""
    ordeal = Ordeal(list(faults), path / "ordeal", policy, settings)
    ordeal.go()
    assert ordeal.met() >= {fault.kind for fault in faults} - {Kind.POISON}
    return (ordeal.folder / "log").read_text(errors="replace")


def reasons(path: Path) -> dict[int, tuple[str, int, str]]:
    """Ticket -> state, attempts and why, of the run's ledger."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(path / "ordeal" / "runs" / "it" / "ledger.sqlite")) as db:
        return {row[0]: row[1:] for row in db.execute("SELECT ticket, state, attempts, reason FROM tickets")}


def cold_start_s(log: str) -> float:
    """Of the engines of this run, at its beginning, when nobody else starts with them but the learner."""
    found = re.search(r"rollout actors are up after (\d+) s", log)
    assert found
    return float(found[1])


def recoveries(log: str, who: str = "rollout actor") -> list[float]:
    return [float(seconds) for seconds in re.findall(RECOVERIES[who], log)]


def test_tickets_that_go_wrong(small_policy: Path, tmp_path: Path) -> None:
    """Broken environments and messages cost an attempt, or a worker and not even that."""
    log = undergo(
        tmp_path, small_policy,
        Fault(Kind.ENV_RAISES, 2), Fault(Kind.ENV_HANGS, 5), Fault(Kind.ENV_EATS, 7), Fault(Kind.CORRUPT, 8),
        Fault(Kind.GRADER_HANGS, 20),
    )  # fmt: skip
    tickets = reasons(tmp_path)
    assert [tickets[n][1] for n in (2, 5)] == [2, 2]
    # The damaged message is of the first ticket from 8 on that has one: 8 itself may be filtered.
    assert len([n for n, (_, attempts, _) in tickets.items() if attempts == 2]) >= 3
    assert not [n for n, (state, _, _) in tickets.items() if state == "failed"]
    assert "samples again" not in log  # no actor was the worse for it
    lines = [json.loads(line) for line in (tmp_path / "ordeal/runs/it/metrics.jsonl").read_text().splitlines()]
    assert sum(line["replaced_env_workers"] for line in lines) >= 2  # of the one that hung and the one that ate memory
    assert tickets[20][1] == 1  # an answer nobody could judge is no solution, no wrong one, and no reason to try again
    assert sum(line["failed_episodes"] for line in lines) >= 1


def test_a_ticket_that_kills_every_actor(small_policy: Path, tmp_path: Path) -> None:
    """It ends as failed, with why; those that were sampled beside it do not."""
    log = undergo(tmp_path, small_policy, Fault(Kind.POISON, 6))
    tickets = reasons(tmp_path)
    assert [n for n, (state, _, _) in tickets.items() if state == "failed"] == [6]
    _, attempts, why = tickets[6]
    assert attempts == 3
    assert "rollout actor" in why
    assert "failed at ticket 6" in why
    assert len(recoveries(log)) >= 2
    assert max(recoveries(log)) <= cold_start_s(log) + BESIDE_S


def test_actors_that_die(small_policy: Path, tmp_path: Path) -> None:
    """While they sample, and between queueing a group and saying so."""
    log = undergo(tmp_path, small_policy, Fault(Kind.EXIT, 3), Fault(Kind.QUEUED_EXIT, 9))
    assert reasons(tmp_path)[3][1] >= 2
    assert max(recoveries(log)) <= cold_start_s(log) + BESIDE_S


def test_broadcasts_that_break_and_a_full_disk(small_policy: Path, tmp_path: Path) -> None:
    """Both actors are lost at the same version, one before the first bucket, one behind it; then the one that is back
    first has no room for the weights. A rank cannot write its part of a checkpoint."""
    log = undergo(
        tmp_path, small_policy,
        Fault(Kind.BROADCAST_EXIT, 2, 0), Fault(Kind.BROADCAST_HALF, 2, 1), Fault(Kind.DISK_FULL, 3, 1),
        *(Fault(Kind.BROADCAST_RAISES, 5, whom) for whom in range(ACTORS)),  # the same fault: it takes place once
    )  # fmt: skip
    assert re.search(r"rollout actor [01] failed to take the weights: .*no memory left for the weights", log)
    assert max(recoveries(log)) <= cold_start_s(log) + BESIDE_S
    [failed] = [line for line in log.splitlines() if "not written" in line]
    assert "checkpoint of update 4 not written: " in failed
    assert "No space left on device" in failed
    assert not list((tmp_path / "ordeal/runs/it/checkpoints").glob(".*"))  # what was half written is gone


def test_engines_that_hang_or_raise(small_policy: Path, tmp_path: Path) -> None:
    """A hung engine ends its process by the watchdog, which leaves the stacks of its threads."""
    log = undergo(tmp_path, small_policy, Fault(Kind.ENGINE_HANGS, 4), Fault(Kind.ENGINE_RAISES, 14))
    stacks = "".join(
        p.read_text() for p in (tmp_path / "ordeal" / "runs" / "it" / "stacks").glob("rollout-actor-*.txt")
    )
    assert "engine_thread.py" in stacks
    assert "the engine stopped: a kernel failed" in log


def test_an_actor_that_is_stopped_and_one_that_is_slow(small_policy: Path, tmp_path: Path) -> None:
    """What notices first that an actor stands still: its watch, or what it was asked at that moment."""
    log = undergo(tmp_path, small_policy, Fault(Kind.SLOW_ACTOR, 1, 0), Fault(Kind.STOP_ACTOR, 3, 1))
    first = next(line for line in log.splitlines() if "it is started again" in line)
    noticed = (
        r"rollout actor 1 gave no sign of life for 9 s \(1.5 x rollout.hang_timeout_s\)",
        r"rollout actor 1 did not answer \w+ within 20 s \(sync.timeout_s\)",
        r"rollout actor 1 did not (take the weights|join the weight group)",
    )
    assert re.search("|".join(noticed), first), first


def test_the_queue_dies(small_policy: Path, tmp_path: Path) -> None:
    log = undergo(tmp_path, small_policy, Fault(Kind.KILL_QUEUE, 2), Fault(Kind.KILL_QUEUE, 5))
    assert "the replay queue died and was started again" in log
    assert log.count("the replay queue answers again, ") == 2


def test_the_queue_is_stopped(small_policy: Path, tmp_path: Path) -> None:
    """Alive and silent: it is found by its missing sign of life, long before anyone's wait for it ends."""
    log = undergo(tmp_path, small_policy, Fault(Kind.STOP_QUEUE, 3), settings=("queue.timeout_s=300",))
    assert "the replay queue gave no sign of life for 9 s (1.5 x rollout.hang_timeout_s)" in log
    assert "the replay queue answers again, " in log
    assert "the replay queue died and was started again" in log


def test_a_learner_rank_dies(small_policy: Path, tmp_path: Path) -> None:
    """The run goes back to its last checkpoint by itself, with the engines it has."""
    log = undergo(tmp_path, small_policy, Fault(Kind.KILL_RANK, 3, 1), Fault(Kind.KILL_RANK, 6, 0))
    assert len(recoveries(log, "learner")) == 2
    assert max(recoveries(log, "learner")) < MOST_S
    assert "resuming" in log


def test_a_learner_rank_is_stopped(small_policy: Path, tmp_path: Path) -> None:
    """Alive and silent: the other ranks' calls end at their limit, and the stopped process is ended too."""
    log = undergo(tmp_path, small_policy, Fault(Kind.STOP_RANK, 3, 1), settings=("deepspeed.timeout_s=30",))
    assert max(recoveries(log, "learner")) < MOST_S


def test_the_driver_dies(small_policy: Path, tmp_path: Path) -> None:
    log = undergo(tmp_path, small_policy, Fault(Kind.KILL_DRIVER, 5))
    assert "issued again" in log


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_faults_by_chance(small_policy: Path, tmp_path: Path, seed: int) -> None:
    """The first few of `make chaos`."""
    ordeal = Ordeal(schedule(seed, UPDATES, UPDATES * GROUPS, ACTORS, RANKS), tmp_path / "ordeal", small_policy)
    ordeal.go()  # what it checks holds, or it would have raised
    assert "report: " in ordeal.said()
