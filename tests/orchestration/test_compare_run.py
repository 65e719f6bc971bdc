"""Processes of a comparison: order, how many at once, failures, interruption; with real processes at the end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from orchestration.comparison_run import LaunchError, LocalLauncher, Task, command, last_lines, run_tasks


class Slow:
    """A process that ends at its n-th look, with a status."""

    def __init__(self, looks: int, status: int) -> None:
        self.looks, self.status, self.stopped = looks, status, list[bool]()

    def poll(self) -> int | None:
        self.looks -= 1
        return self.status if self.looks <= 0 or any(self.stopped) else None

    def stop(self, *, force: bool) -> None:
        self.stopped.append(force)


class Launcher:
    """Starts `Slow`s; most: how many ran at once."""

    def __init__(self, looks: dict[str, int], failing: tuple[str, ...] = ()) -> None:
        self.looks, self.failing = looks, failing
        self.began, self.processes, self.most = list[str](), list[Slow](), 0

    def start(self, task: Task) -> Slow:
        self.began.append(task.name)
        process = Slow(self.looks.get(task.name, 1), 1 if task.name in self.failing else 0)
        self.processes.append(process)
        self.most = max(self.most, sum(p.looks > 0 for p in self.processes))
        return process


def tasks(folder: Path, *names: str, **needs: str) -> list[Task]:
    return [Task(n, (n,), (needs[n],) if n in needs else (), folder / f"{n}.log") for n in names]


def test_one_after_another_in_the_given_order(tmp_path: Path) -> None:
    launcher, said = Launcher({"a": 3, "b": 1, "c": 2}), list[str]()
    assert run_tasks(tasks(tmp_path, "a", "b", "c"), launcher, 1, said.append, 0) == {}
    assert launcher.began == ["a", "b", "c"]
    assert launcher.most == 1
    assert [line.split(":")[0] for line in said] == ["a", "a", "b", "b", "c", "c"]


def test_as_many_at_once_as_asked_for(tmp_path: Path) -> None:
    launcher = Launcher(dict.fromkeys("abcde", 4))
    run_tasks(tasks(tmp_path, *"abcde"), launcher, 3, lambda _: None, 0)
    assert launcher.most == 3
    assert sorted(launcher.began) == list("abcde")


def test_what_is_needed_has_ended_before(tmp_path: Path) -> None:
    launcher = Launcher({"b": 5})
    run_tasks(tasks(tmp_path, "a", "b", "c", a="b"), launcher, 2, lambda _: None, 0)
    assert launcher.began == ["b", "c", "a"]


def test_a_failure_is_said_with_its_last_lines_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("early\n" + "x\n" * 7 + "\n\nerror: broken\n")
    launcher, said = Launcher({}, failing=("a",)), list[str]()
    failed = run_tasks(tasks(tmp_path, "a", "b", "c", "d", b="a", c="b"), launcher, 1, said.append, 0)
    assert launcher.began == ["a", "d"]
    assert failed == {
        "a": "exit status 1", "b": "not started: it needs a", "c": "not started: it needs b"
    }  # fmt: skip
    text = "\n".join(said)
    assert "a: FAILED with exit status 1" in text
    assert "    error: broken" in said
    assert "early" not in text


def test_a_task_that_cannot_be_started_is_a_failure(tmp_path: Path) -> None:
    class Refusing(Launcher):
        def start(self, task: Task) -> Slow:
            if task.name == "a":
                raise LaunchError("no room")
            return super().start(task)

    launcher = Refusing({})
    assert run_tasks(tasks(tmp_path, "a", "b"), launcher, 1, lambda _: None, 0) == {"a": "not started: no room"}
    assert launcher.began == ["b"]


def test_interrupted_it_stops_what_runs(tmp_path: Path) -> None:
    class Interrupting(Launcher):
        def start(self, task: Task) -> Slow:
            if task.name == "c":
                raise KeyboardInterrupt
            return super().start(task)

    launcher = Interrupting({"a": 9999, "b": 9999})
    with pytest.raises(KeyboardInterrupt):
        run_tasks(tasks(tmp_path, "a", "b", "c"), launcher, 3, lambda _: None, 0)
    assert [process.stopped[0] for process in launcher.processes] == [False, False]


def test_a_command_can_be_typed() -> None:
    assert (
        command(("orchestration/run.py", "sampler={name: sesa}"))
        == "python orchestration/run.py 'sampler={name: sesa}'"
    )


def test_a_log_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none.log") == []


class TestProcesses:
    def task(self, folder: Path, program: str) -> Task:
        return Task("it", ("-c", program), (), folder / "it.log")

    def test_output_and_status(self, tmp_path: Path) -> None:
        said: list[str] = []
        task = self.task(tmp_path, "import os, sys; print(os.path.exists('orchestration')); sys.exit('boom')")
        assert run_tasks([task], LocalLauncher(), 1, said.append, 0.02) == {"it": "exit status 1"}
        assert task.log.read_text() == "True\nboom\n"
        assert "    boom" in said

    def test_output_goes_behind_what_is_there(self, tmp_path: Path) -> None:
        task = self.task(tmp_path, "print('second')")
        task.log.write_text("first\n")
        run_tasks([task], LocalLauncher(), 1, lambda _: None, 0.02)
        assert task.log.read_text() == "first\nsecond\n"

    def test_an_interrupt_is_passed_on_and_waited_for(self, tmp_path: Path) -> None:
        program = (
            "import signal, time\n"
            "try:\n    print('up', flush=True); time.sleep(60)\n"
            "except KeyboardInterrupt:\n    time.sleep(0.2); print('left in good order')\n"
        )
        task = self.task(tmp_path, program)

        def say(text: str) -> None:
            if "started" in text:
                signal.signal(signal.SIGALRM, signal.default_int_handler)
                signal.setitimer(signal.ITIMER_REAL, 1.5)

        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run_tasks([task], LocalLauncher(), 1, say, 0.02)
        assert task.log.read_text() == "up\nleft in good order\n"
        assert time.monotonic() - began < 30

    def test_force_ends_the_whole_session(self, tmp_path: Path) -> None:
        program = (
            "import subprocess, sys, time, signal\n"
            "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
            "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True)\n"
            "time.sleep(60)\n"
        )
        process = LocalLauncher().start(self.task(tmp_path, program))
        log = tmp_path / "it.log"
        while not log.read_text().endswith("\n"):
            time.sleep(0.02)
        process.stop(force=True)
        deadline = time.monotonic() + 10
        while process.poll() is None or _alive(int(log.read_text())):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert process.poll() == -signal.SIGKILL


def _alive(pid: int) -> bool:
    """Whether a process still does something; one that ended and that nobody asked after does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"
