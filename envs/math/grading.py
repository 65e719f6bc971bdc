"""Whether an answer equals a reference answer: by their texts and numbers, else by a library in a process of its own.

A formula can keep the library busy for ever or make it fill the memory. So it runs in a process that is killed when a
comparison takes too long, and replaced by a fresh one when the next comparison needs it.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from threading import Lock
from typing import Any

from configs.environments import MathSettings
from envs.base import Failure
from envs.math.answers import is_words, normal, plain_number

ROOT = Path(__file__).resolve().parents[2]
GRADER = "envs.math.grader_process"
COMMAND = (sys.executable, "-m", GRADER)
# Importing the library takes half a second; a machine that is short of memory or disk takes its time.
START_ALLOWANCE_S = 60.0
LONGEST_REPLY = 4096
# The library rounds decimals to six places: numbers further apart than this it never takes for equal.
NUMBERS_DIFFER = Fraction(1, 100_000)


def is_right(reference: str, answer: str, settings: MathSettings) -> bool:
    """Compare two cleaned texts. Raises Failure when the comparison breaks or meets a limit of the settings."""
    form = normal(reference)
    if form == normal(answer):
        return True
    wanted, given = plain_number(reference), plain_number(answer)
    if wanted is not None and given is not None and abs(wanted - given) > NUMBERS_DIFFER:
        return False
    if is_words(form):
        return False
    return grader(settings.grade_memory_mib).equal(reference, answer, settings.grade_timeout_s)


class Grader:
    """A process that compares one pair at a time, for all threads; started when it is first needed."""

    def __init__(self, memory_mib: int) -> None:
        self._memory_mib = memory_mib
        self._lock = Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = 0

    def equal(self, reference: str, answer: str, timeout_s: float) -> bool:
        """Raises Failure, with its cause, when there is no reply within the time; then the process is gone."""
        with self._lock:
            try:
                return self._ask(self._running(), reference, answer, timeout_s)
            except BaseException:
                # Whatever it was: a late reply must not be taken for that of the next question.
                self.stop()
                raise

    def stop(self) -> None:
        """Kill the process, if there is one; the next question starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            _close(child)

    @property
    def process_id(self) -> int | None:
        return None if self._child is None else self._child.pid

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self.stop()
        if self._child is None:
            self._child = _started(self._memory_mib)
            _await_start(self._child)
        return self._child

    def _ask(self, child: subprocess.Popen[bytes], reference: str, answer: str, timeout_s: float) -> bool:
        self._asked += 1
        request = {"id": self._asked, "reference": reference, "answer": answer, "limit_s": timeout_s}
        _send(child, request)
        reply = _reply(child, timeout_s)
        if reply is None:
            raise Failure(f"grading an answer took longer than {timeout_s:g} s (env.grade_timeout_s)")
        equal = reply.get("equal")
        if reply.get("id") != self._asked or not isinstance(equal, bool):
            raise Failure(f"grading an answer {reply.get('failure', 'had a reply that cannot be read')}")
        if reply.get("last"):
            self.stop()
        return equal


def _started(memory_mib: int) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # A fixed hash seed: the library goes through sets, and the same answer has to get the same verdict.
    variables = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    try:
        return subprocess.Popen(
            [*COMMAND, str(memory_mib)],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        raise Failure(f"the grading process cannot be started: {error}") from error


def _await_start(child: subprocess.Popen[bytes]) -> None:
    try:
        ready = _reply(child, START_ALLOWANCE_S)
    except Failure as failure:
        raise Failure(f"{failure} at its start; see why: python -m {GRADER} 1024") from failure
    if ready is None:
        raise Failure(f"the grading process did not start within {START_ALLOWANCE_S:g} s")
    if ready.get("ready") is not True:
        raise Failure("the grading process did not say that it is ready")


def _send(child: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
    except OSError as error:
        raise Failure(f"the grading process takes no questions: {error}") from error


def _reply(child: subprocess.Popen[bytes], timeout_s: float) -> dict[str, Any] | None:
    """The next line, None if it does not come in time. Raises Failure for an end of the process and for garbage."""
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
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):
        raise Failure("the grading process had a reply that cannot be read")
    return reply


def _exit_code(child: subprocess.Popen[bytes]) -> int | None:
    """None if it only closed its output."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(timeout=1)
    return child.returncode


def _close(child: subprocess.Popen[bytes]) -> None:
    for pipe in filter(None, (child.stdin, child.stdout)):
        with suppress(OSError):  # what was not sent to a process that is gone
            pipe.close()


_graders: dict[int, Grader] = {}


def grader(memory_mib: int) -> Grader:
    """The one of this process with this limit of memory."""
    return _graders.setdefault(memory_mib, Grader(memory_mib))


def stop_graders() -> None:
    for found in list(_graders.values()):
        found.stop()


atexit.register(stop_graders)
# A forked process shares the pipes, and perhaps a held lock, with its parent: it gets a grader of its own.
os.register_at_fork(after_in_child=_graders.clear)
