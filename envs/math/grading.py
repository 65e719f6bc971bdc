"""Whether an answer equals a reference answer: by their texts and numbers, else by a library in other processes."""

from __future__ import annotations

import atexit
import os
import time
from contextlib import suppress
from fractions import Fraction
from queue import Empty, Queue

from configs.environments import MathSettings
from envs.base import Failure
from envs.math.answers import is_words, normal, plain_number
from envs.math.grader import START_ALLOWANCE_S, Grader

# The library rounds decimals to six places: numbers further apart than this it never takes for equal.
NUMBERS_DIFFER = Fraction(1, 100_000)
# One that hangs leaves another for the honest; a comparison takes milliseconds, so more would only take memory.
GRADERS = 2
# In terms of the time one comparison may take: how long to wait for a grader, and for all of it. So an answer outlasts
# one that hangs, and the start of the next grader, and has its verdict before the caller gives up.
WAIT, TOTAL = 1.5, 2.0
# Two that texts and numbers do not decide.
KNOWN_EQUAL = ("\\frac{1}{2}", "0.5 + 0")


def is_right(reference: str, answer: str, settings: MathSettings) -> bool:
    """Compare two cleaned texts, in at most twice `grade_timeout_s`.

    Raises Failure when the comparison breaks or meets a limit of the settings.
    """
    form = normal(reference)
    if form == normal(answer):
        return True
    wanted, given = plain_number(reference), plain_number(answer)
    if wanted is not None and given is not None and abs(wanted - given) > NUMBERS_DIFFER:
        return False
    if is_words(form):
        return False
    return graders(settings.grade_memory_mib).equal(reference, answer, settings.grade_timeout_s)


def check_grading(settings: MathSettings) -> None:
    """Ask a grader what is known, with as much time to start as it may take. Raises Failure."""
    found = graders(settings.grade_memory_mib)
    if not found.equal(*KNOWN_EQUAL, settings.grade_timeout_s, patience_s=START_ALLOWANCE_S):
        raise Failure(f"the grading process takes {' and '.join(KNOWN_EQUAL)} for different")


class Graders:
    """A few processes that compare, for all threads."""

    def __init__(self, memory_mib: int) -> None:
        self._all = [Grader(memory_mib) for _ in range(GRADERS)]
        self._free: Queue[Grader] = Queue()
        self._started = False
        for grader in self._all:
            self._free.put(grader)

    def start(self) -> None:
        """Start the processes the first time, without waiting for them. Who asks them hears why one cannot start."""
        if not self._started:
            self._started = True
            for grader in self._all:
                _start(grader)

    def equal(self, reference: str, answer: str, timeout_s: float, patience_s: float = 0.0) -> bool:
        """A verdict within TOTAL times the time, and `patience_s` more for a start. Raises Failure with its cause."""
        deadline_s = time.monotonic() + patience_s + TOTAL * timeout_s
        wait_s = patience_s + WAIT * timeout_s
        try:
            grader = self._free.get(timeout=wait_s)
        except Empty:
            raise Failure(f"no grader was free within {wait_s:g} s ({WAIT:g} x env.grade_timeout_s)") from None
        try:
            return grader.equal(reference, answer, timeout_s, deadline_s)
        finally:
            # Where it was killed: the next who asks need not wait for all of its start.
            _start(grader)
            self._free.put(grader)

    def close(self) -> None:
        """Kill the processes, for good."""
        for grader in self._all:
            grader.close()

    def forget(self) -> None:
        """As of `Grader`."""
        for grader in self._all:
            grader.forget()

    @property
    def process_ids(self) -> list[int]:
        """Of those that have been started."""
        return [found for found in (grader.process_id for grader in self._all) if found is not None]


def _start(grader: Grader) -> None:
    with suppress(Failure):
        grader.start()


_graders: dict[int, Graders] = {}


def graders(memory_mib: int) -> Graders:
    """Those of this process with this limit of memory."""
    return _graders.get(memory_mib) or _graders.setdefault(memory_mib, Graders(memory_mib))


def stop_graders() -> None:
    """Kill them all, for good: what is still being graded fails."""
    for found in list(_graders.values()):
        found.close()


def _forget_graders() -> None:
    for found in list(_graders.values()):
        found.forget()
    _graders.clear()


atexit.register(stop_graders)
# A forked process shares the pipes, and perhaps a held lock, with its parent: it gets graders of its own.
os.register_at_fork(after_in_child=_forget_graders)
