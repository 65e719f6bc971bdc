"""Puts a small real run through its faults and checks that nothing was lost or trained twice."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestration.cluster import ROOT
from orchestration.elastic import read_state
from tests.chaos.faults import FROM_WITHOUT, Fault, Kind, write
from tests.chaos.faulty import TRAINED
from tests.chaos.faulty_env import DONE, FAULTS

UPDATES, GROUPS, ACTORS, RANKS = 8, 4, 2, 2
SETTINGS = [
    "sampler={name: parallel, group_size: 4}", f"run.updates={UPDATES}", f"grpo.groups_per_update={GROUPS}",
    f"rollout.actors={ACTORS}", f"deepspeed.ranks={RANKS}", "rollout.prompts_in_flight=4", "queue.max_policy_lag=1",
    "grpo.drop_zero_signal=false", "eval.episodes=8", "eval.samples=2", "checkpoint.every=2", "checkpoint.keep=2",
    "cluster.dashboard=false", "observe.console=false", "rollout.hang_timeout_s=6", "rollout.env_timeout_s=2",
    "rollout.ticket_timeout_s=20", "sync.timeout_s=20", "queue.timeout_s=90",
    "deepspeed.timeout_s=60",
]  # fmt: skip
LIMIT_S = 400.0
SAME_NATS = 1e-3  # between engine and learner
POLL_S = 0.1
RECOVERIES = {
    "rollout actor": r"samples again, (\d+) s after its fault",
    "learner": r"the learner is up again after (\d+) s",
}
STOPS = (Kind.STOP_ACTOR, Kind.STOP_RANK, Kind.STOP_QUEUE)
SLOW_S, STOPPED_OF_TEN = 6.0, 9  # how long an actor is slow, and how many tenths of the time it stands still


class ChaosError(AssertionError):
    """What a run did wrong under faults."""


@dataclass
class Ordeal:
    """One run and its faults, in `folder`."""

    faults: list[Fault]
    folder: Path
    policy: Path
    extra: tuple[str, ...] = ()
    inflicted: list[Kind] = field(default_factory=list)  # those from without that found their victim

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "it"

    def go(self) -> None:
        """Raises ChaosError, with the end of the run's output."""
        self.folder.mkdir(parents=True)
        (self.folder / "done").mkdir()
        write(self.faults, self.folder / "faults.json")
        to_come = sorted((f for f in self.faults if f.kind in FROM_WITHOUT), key=lambda f: f.at)
        until = time.monotonic() + LIMIT_S
        process = self._start()
        try:
            while process.poll() is None:
                if time.monotonic() > until:
                    raise ChaosError(f"not done within {LIMIT_S:g} s: {self.said()}")
                if to_come and self._updates() >= to_come[0].at:
                    fault = to_come.pop(0)
                    self.inflicted += [fault.kind] * inflict(fault, process.pid, self.run)
                    if fault.kind is Kind.KILL_DRIVER:
                        process = self._start("--resume", str(self.run))
                time.sleep(POLL_S)
        finally:
            end_with_children(process.pid)
        if process.returncode:
            raise ChaosError(f"the run ended with status {process.returncode}: {self.said()}")
        check(self.run, self.folder / "trained.jsonl", self.faults)

    def said(self) -> str:
        """The end of the run's output."""
        return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-25:])

    def met(self) -> set[Kind]:
        """The kinds of faults that took place; a ticket that kills whoever takes it leaves its name nowhere."""
        from_within = {Kind(path.name.rsplit(" ", 1)[0]) for path in (self.folder / "done").iterdir()}
        return from_within | set(self.inflicted)

    def recovered_s(self) -> dict[str, list[float]]:
        """Seconds from a fault that was noticed until its victim worked again, as the run said."""
        log = (self.folder / "log").read_text(errors="replace")
        return {who: [float(s) for s in re.findall(said, log)] for who, said in RECOVERIES.items()}

    def actors_lost(self) -> int:
        """How often one was, as the run said."""
        return (self.folder / "log").read_text(errors="replace").count("; it is started again (")

    def _start(self, *resume: str) -> subprocess.Popen[bytes]:
        first = [
            "--config", "configs/quickstart.yaml", *SETTINGS, f"model.path={self.policy}",
            f"run.root={self.folder / 'runs'}", "run.name=it", *self.extra,
        ]  # fmt: skip
        chaos = {FAULTS: "faults.json", DONE: "done", TRAINED: "trained.jsonl"}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.faulty", *(resume or first)], cwd=ROOT, stdout=log, stderr=log,
                env=os.environ | {"NO_COLOR": "1"} | {name: str(self.folder / file) for name, file in chaos.items()},
            )  # fmt: skip

    def _updates(self) -> int:
        try:
            return len((self.run / "metrics.jsonl").read_bytes().splitlines())
        except OSError:
            return -1


def inflict(fault: Fault, driver: int, run: Path) -> bool:
    """A fault from without, to the processes of this driver. One that is not there any more is spared: False."""
    if fault.kind is Kind.KILL_DRIVER:
        end_with_children(driver)
        return True
    pid = {
        Kind.KILL_QUEUE: lambda: _process(driver, "ReplayQueue", 0),
        Kind.STOP_QUEUE: lambda: _process(driver, "ReplayQueue", 0),
        Kind.KILL_RANK: lambda: _process(driver, "RecordingRank", fault.whom),
        Kind.STOP_RANK: lambda: _process(driver, "RecordingRank", fault.whom),
    }.get(fault.kind, lambda: _actor(run, fault.whom))()
    if pid is None:
        return False
    with suppress(ProcessLookupError):
        if fault.kind is Kind.SLOW_ACTOR:
            _slow_down(pid)
        else:
            os.kill(pid, signal.SIGSTOP if fault.kind in STOPS else signal.SIGKILL)
        return True
    return False


def _process(driver: int, title: str, number: int) -> int | None:
    found = [p.pid for p in _children(driver) if any(title in part for part in _cmdline(p)[:1])]
    return sorted(found)[number % len(found)] if found else None


def _actor(run: Path, number: int) -> int | None:
    state = read_state(run)
    place = state.places.get(str(number)) if state is not None else None
    return int(place.split()[1]) if place else None


def _slow_down(pid: int) -> None:
    until = time.monotonic() + SLOW_S
    while time.monotonic() < until:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.01 * STOPPED_OF_TEN)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)


def _children(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _cmdline(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def end_with_children(pid: int) -> None:
    """Kill a driver and, since nobody else does it then, the Ray it had started."""
    children = _children(pid)
    for process in [*children, *([psutil.Process(pid)] if psutil.pid_exists(pid) else [])]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(children, timeout=10)


def check(run: Path, trained: Path, faults: list[Fault]) -> None:
    """Raises ChaosError where a ticket was lost or trained twice, or the figures are not of one policy."""
    summary = json.loads((run / "summary.json").read_text())
    _expect(summary["ledger_balanced"] and summary["updates"] == UPDATES, f"summary: {summary}")
    differs = summary["logprob_abs_diff_max"]
    _expect(differs is not None and differs <= SAME_NATS, f"engine and learner differ by {differs}")
    states = check_books(run, trained)
    for fault in faults:
        if fault.kind is Kind.POISON and states.get(fault.at, "failed") not in ("failed", "cancelled"):
            raise ChaosError(f"poison ticket {fault.at} became {states[fault.at]}")


def check_books(run: Path, trained: Path) -> dict[int, str]:
    """The same of a run that has ended in whatever way, by its own books; ticket -> state."""
    with closing(sqlite3.connect(run / "ledger.sqlite")) as ledger:
        states: dict[int, str] = dict(ledger.execute("SELECT ticket, state FROM tickets"))
        (issued,) = ledger.execute("SELECT issued FROM totals").fetchone()
    _expect(sorted(states) == list(range(issued)), f"{issued} tickets issued, there are {sorted(states)}")
    unended = {n: state for n, state in states.items() if state in ("queued", "in_flight")}
    _expect(not unended, f"tickets without an end: {unended}")
    _check_trained({n for n, state in states.items() if state == "trained"}, trained)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    _expect([line["update"] for line in lines] == list(range(1, len(lines) + 1)), "metrics.jsonl misses an update")
    _expect(all(line["policy_lag_max"] <= 1 for line in lines), "a group older than the lag bound was trained on")
    compared = [line["logprob_abs_diff_max"] for line in lines if line["logprob_abs_diff_max"] is not None]
    off = [differs for differs in compared if differs > SAME_NATS]
    _expect(not off, f"engine and learner differ by {off}")
    return states


def _check_trained(booked: set[int], trained: Path) -> None:
    """What the learner has written down, update by update as they count, is what the ledger says, each ticket once."""
    by_version: dict[int, list[int]] = {}
    for line in map(json.loads, trained.read_text().splitlines()):
        by_version[line["version"]] = line["tickets"] if line["steps"] else []
    tickets = [ticket for batch in by_version.values() for ticket in batch]
    twice = sorted({ticket for ticket in tickets if tickets.count(ticket) > 1})
    _expect(not twice, f"tickets {twice} were trained twice")
    _expect(set(tickets) == booked, f"trained but not booked or the reverse: {sorted(set(tickets) ^ booked)}")


def _expect(true: bool, text: str) -> None:
    if not true:
        raise ChaosError(text)
