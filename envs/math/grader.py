"""One process that compares answers with the equivalence library, seen from the process that asks it.

A formula can keep the library busy for ever or make it fill the memory. So it runs in a process of its own, which is
killed when a comparison takes too long, and replaced by a fresh one.
"""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from configs.shown import is_secret_name
from envs.base import Failure

ROOT = Path(__file__).resolve().parents[2]
GRADER = "envs.math.grader_process"
COMMAND = (sys.executable, "-m", GRADER)
# Importing the library takes half a second; a machine that is short of memory or disk takes its time.
START_ALLOWANCE_S = 60.0
LONGEST_REPLY = 4096


class StillStarting(Failure):
    """There was no time left to wait for a process that is no worse for it."""


class Grader:
    """Compares one pair at a time, for one thread at a time; only `close` may be called by another one meanwhile."""

    def __init__(self, memory_mib: int) -> None:
        self._memory_mib = memory_mib
        # Of the fields alone: nobody waits for a process with it in hand.
        self._lock = Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._began_s = 0.0
        self._ready = False
        self._closed = False
        self._asked = 0

    def start(self) -> subprocess.Popen[bytes]:
        """The process; started if none runs, which does not wait until it is ready. Raises Failure."""
        with self._lock:
            if self._closed:
                raise Failure("grading has ended, as this process is about to")
            if self._child is not None and self._child.poll() is not None:
                _close_pipes(self._child)
                self._child = None
            if self._child is None:
                self._child, self._ready, self._began_s = _started(self._memory_mib), False, time.monotonic()
            return self._child

    def equal(self, reference: str, answer: str, timeout_s: float, deadline_s: float = math.inf) -> bool:
        """Raises Failure, with its cause, when there is no reply within the time or by the deadline (monotonic clock).

        Then the process is gone, unless it is only still starting.
        """
        child = self.start()
        try:
            self._await_ready(child, deadline_s)
            return self._ask(child, reference, answer, min(timeout_s, max(0.0, deadline_s - time.monotonic())))
        except StillStarting:
            raise
        except BaseException:
            # Whatever it was: a late reply must not be taken for that of the next question.
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the process, if there is one."""
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            _close_pipes(child)

    def close(self) -> None:
        """Kill the process and start no other: whoever waits for its reply gets a Failure."""
        with self._lock:
            self._closed = True
        self.stop()

    def forget(self) -> None:
        """In a forked process: give up the parent's pipes, or the grader would not see its end when the parent dies.

        Takes no lock: a thread that is gone may hold it.
        """
        if self._child is not None:
            _close_pipes(self._child)

    @property
    def process_id(self) -> int | None:
        child = self._child
        return None if child is None else child.pid

    def _await_ready(self, child: subprocess.Popen[bytes], deadline_s: float) -> None:
        """Raises StillStarting at the deadline, another Failure when it cannot start in the time it is allowed."""
        allowed_s = self._began_s + START_ALLOWANCE_S
        if not self._ready:
            self._ready = _says_ready(child, min(allowed_s, deadline_s) - time.monotonic())
        if not self._ready and time.monotonic() < allowed_s:
            raise StillStarting("the grading process was still starting when the time was over (env.grade_timeout_s)")
        if not self._ready:
            raise Failure(f"the grading process did not start within {START_ALLOWANCE_S:g} s")

    def _ask(self, child: subprocess.Popen[bytes], reference: str, answer: str, timeout_s: float) -> bool:
        self._asked += 1
        request = {"id": self._asked, "reference": reference, "answer": answer, "limit_s": timeout_s}
        _send(child, request)
        reply = _reply(child, timeout_s)
        if reply is None:
            raise Failure(f"grading an answer took longer than {timeout_s:.3g} s (env.grade_timeout_s)")
        equal = reply.get("equal")
        if reply.get("id") != self._asked or not isinstance(equal, bool):
            raise Failure(f"grading an answer {reply.get('failure', 'had a reply that cannot be read')}")
        if reply.get("last"):
            self.stop()
        return equal


def _started(memory_mib: int) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # A fixed hash seed: the library goes through sets, and the same answer has to get the same verdict.
    # It reads what a policy wrote: there is nothing in it to be had.
    public = {name: value for name, value in os.environ.items() if not is_secret_name(name)}
    variables = {**public, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    try:
        return subprocess.Popen(
            [*COMMAND, str(memory_mib)],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
    except OSError as error:
        raise Failure(f"the grading process cannot be started: {error}") from error


def _says_ready(child: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """False if it says nothing in time."""
    try:
        said = _reply(child, timeout_s)
    except Failure as failure:
        raise Failure(f"{failure} at its start; see why: python -m {GRADER} 1024") from failure
    if said is not None and said.get("ready") is not True:
        raise Failure("the grading process did not say that it is ready")
    return said is not None


def _send(child: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    assert child.stdin is not None
    rest = json.dumps(request).encode() + b"\n"
    try:
        while rest:
            rest = rest[child.stdin.write(rest) or 0 :]
    except (OSError, ValueError) as error:
        raise Failure(f"the grading process takes no questions: {error}") from error


def _reply(child: subprocess.Popen[bytes], timeout_s: float) -> dict[str, Any] | None:
    """The next line, None if it does not come in time. Raises Failure for an end of the process and for garbage."""
    try:
        line = _line(child, timeout_s)
    except (OSError, ValueError) as error:
        raise Failure(f"the grading process was stopped: {error}") from error
    if line is None:
        return None
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):
        raise Failure("the grading process had a reply that cannot be read")
    return reply


def _line(child: subprocess.Popen[bytes], timeout_s: float) -> bytes | None:
    assert child.stdout is not None
    poll, deadline = select.poll(), time.monotonic() + timeout_s
    poll.register(child.stdout, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
        part = os.read(child.stdout.fileno(), LONGEST_REPLY)
        line += part
        if not part:
            raise Failure(f"the grading process died (exit code {_exit_code(child)})")
        if len(line) > LONGEST_REPLY:
            raise Failure("the grading process said more than a reply")
    return line


def _exit_code(child: subprocess.Popen[bytes]) -> int | None:
    """None if it only closed its output."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(timeout=1)
    return child.returncode


def _close_pipes(child: subprocess.Popen[bytes]) -> None:
    """They are not buffered: neither a lock nor what was not sent is in the way."""
    for pipe in filter(None, (child.stdin, child.stdout)):
        pipe.close()
