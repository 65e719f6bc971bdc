"""Runs the processes of a comparison, as many at once as asked for, each when what it needs is there."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestration.comparison_plan import ROOT

LINES_SHOWN = 8
# A run that is interrupted finishes its update and keeps it; asked once more it ends at once, and takes its engines and
# its Ray down.
_FINISH_S, _STOP_S = 120.0, 60.0


@dataclass(frozen=True, slots=True)
class Task:
    """One process. needs: names of tasks that must have ended well. log: where its output goes, behind what is there.

    arguments: of python, in the project's folder.
    """

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    log: Path


class LaunchError(RuntimeError):
    """A task cannot be started; names its cause."""


class Running(Protocol):
    """A process that was started."""

    def poll(self) -> int | None:
        """Exit status; None while it runs."""

    def stop(self, *, force: bool) -> None:
        """Ask it to end in good order, or end it."""


class Launcher(Protocol):
    def start(self, task: Task) -> Running:
        """Raises LaunchError."""


class LocalProcess:
    """A process in a session of its own: Ctrl-C on the terminal reaches it through `stop` alone."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self, *, force: bool) -> None:
        with suppress(ProcessLookupError):
            if force:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.send_signal(signal.SIGINT)


class LocalLauncher:
    """Starts tasks on this machine."""

    def start(self, task: Task) -> LocalProcess:
        with task.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *task.arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | {"PYTHONUNBUFFERED": "1"}, start_new_session=True,
            )  # fmt: skip
        return LocalProcess(process)


def run_tasks(
    tasks: Sequence[Task], launcher: Launcher, jobs: int, say: Callable[[str], None], poll_s: float = 0.5
) -> dict[str, str]:
    """Run all tasks, at most `jobs` at once; name -> why it has not ended well, empty when all have.

    A failure is said with the last lines of its log, what needs that task is not started, and the others go on. When
    this is interrupted, all that runs is stopped first.
    """
    waiting, running, failed = list(tasks), dict[str, tuple[Task, Running, float]](), dict[str, str]()
    try:
        while waiting or running:
            for task in _ready(waiting, running, failed, say)[: jobs - len(running)]:
                waiting.remove(task)
                say(f"{task.name}: started ({len(waiting)} to go), output in {task.log}")
                try:
                    running[task.name] = (task, launcher.start(task), time.monotonic())
                except LaunchError as error:
                    failed[task.name] = f"not started: {error}"
                    say(f"{task.name}: FAILED: {failed[task.name]}")
            for task, process, began in list(running.values()):
                if (status := process.poll()) is not None:
                    del running[task.name]
                    _ended(task, status, time.monotonic() - began, failed, say)
            time.sleep(poll_s if running else 0)
    finally:
        _stop([process for _, process, _ in running.values()], poll_s)
    return failed


def last_lines(log: Path) -> list[str]:
    """The end of a task's output."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            return list(deque((line.rstrip() for line in file if line.strip()), LINES_SHOWN))
    except OSError:
        return []


def command(arguments: Sequence[str]) -> str:
    """What to type in the project's folder for the same."""
    return shlex.join(("python", *arguments))


def shown_command(arguments: Sequence[str]) -> str:
    """A command without the place of a configuration that lies outside the project."""
    return command([Path(a).name if Path(a).is_absolute() else a for a in arguments])


def _ready(
    waiting: list[Task], running: Collection[str], failed: dict[str, str], say: Callable[[str], None]
) -> list[Task]:
    """Tasks that can start; those that never can are taken out of `waiting` and put into `failed`."""
    for task in list(waiting):
        if broken := [need for need in task.needs if need in failed]:
            waiting.remove(task)
            failed[task.name] = f"not started: it needs {broken[0]}"
            say(f"{task.name}: {failed[task.name]}, which failed")
    unfinished = {task.name for task in waiting} | set(running)
    return [task for task in waiting if not unfinished.intersection(task.needs)]


def _ended(task: Task, status: int, seconds: float, failed: dict[str, str], say: Callable[[str], None]) -> None:
    if status == 0:
        say(f"{task.name}: done in {seconds:.0f} s")
        return
    failed[task.name] = f"exit status {status}"
    say(f"{task.name}: FAILED with exit status {status} after {seconds:.0f} s; the end of {task.log}:")
    for line in last_lines(task.log):
        say(f"    {line}")


def _stop(processes: Sequence[Running], poll_s: float) -> None:
    try:
        for patience_s in (_FINISH_S, _STOP_S):
            for process in processes:
                if process.poll() is None:
                    process.stop(force=False)
            deadline = time.monotonic() + patience_s
            while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
                time.sleep(poll_s)
    finally:  # interrupted once more: no patience is left
        for process in processes:
            if process.poll() is None:
                process.stop(force=True)
