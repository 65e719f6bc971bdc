"""A stuck process ends by itself and leaves its stacks; one that is fed, or at rest, lives."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestration.cluster import ROOT

HEAD = """
import sys, time
from pathlib import Path
from configs.watchdog import Watchdog
dog = Watchdog(Path(sys.argv[1]))
"""
STUCK_IN_PYTHON = """
def waiting_for_nothing():
    while True:
        pass
dog.feed(1.0)
waiting_for_nothing()
"""
# A call through PyDLL keeps the interpreter's lock: no other Python thread runs meanwhile.
STUCK_IN_C = """
import ctypes
def holding_the_lock():
    ctypes.PyDLL(None).sleep(60)
dog.feed(1.0)
holding_the_lock()
"""
STUCK_IN_A_THREAD = """
import threading
def waiting_in_a_thread():
    dog.feed(1.0)
    threading.Event().wait()
threading.Thread(target=waiting_in_a_thread, daemon=True).start()
time.sleep(60)
"""
STUCK_LOOP = """
import asyncio
async def main():
    looked_after = asyncio.create_task(dog.look_after_loop(1.0))
    await asyncio.sleep(2.5)
    print("alive", flush=True)
    blocking_the_loop()
def blocking_the_loop():
    time.sleep(60)
asyncio.run(main())
"""
LOOP_THAT_GOES_ON = """
import asyncio
async def main():
    looked_after = asyncio.create_task(dog.look_after_loop(1.0))
    await asyncio.sleep(2.5)
asyncio.run(main())
time.sleep(1.5)
print("alive")
"""
FED = """
until = time.monotonic() + 5.0
while time.monotonic() < until:
    dog.feed(2.0)
    time.sleep(0.01)
dog.rest()
print("alive")
"""
AT_REST = """
dog.feed(2.0)
dog.rest()
time.sleep(2.5)
print("alive")
"""
NEVER_FED = """
time.sleep(1.0)
print("alive")
"""
AGAIN_AFTER_REST = """
dog.feed(1.0)
dog.rest()
dog.feed(1.0)
time.sleep(60)
"""
SHORTER = """
dog.feed(600.0)
dog.feed(1.0)
time.sleep(60)
"""
LONGER = """
dog.feed(2.0)
dog.feed(60.0)
time.sleep(2.5)
print("alive")
"""


def run(program: str, stacks: Path) -> tuple[int, str, str, float]:
    """Status, standard output, what is in the file, and seconds."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HEAD + program, str(stacks)], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    return done.returncode, done.stdout, stacks.read_text(), time.monotonic() - began


@pytest.mark.parametrize(
    ("program", "function"),
    [
        (STUCK_IN_PYTHON, "waiting_for_nothing"),
        (STUCK_IN_C, "holding_the_lock"),
        (STUCK_IN_A_THREAD, "waiting_in_a_thread"),
        (AGAIN_AFTER_REST, "<module>"),
        (SHORTER, "<module>"),
        (STUCK_LOOP, "blocking_the_loop"),
    ],
)
def test_a_stuck_process_ends_within_the_limit_and_leaves_its_stacks(
    program: str, function: str, tmp_path: Path
) -> None:
    status, _, stacks, seconds = run(program, tmp_path / "stacks" / "actor.txt")  # in a folder that is made
    assert status == 1
    assert 1.0 <= seconds < 40
    assert stacks.startswith("Timeout (0:00:01")
    assert f"in {function}" in stacks


@pytest.mark.parametrize("program", [FED, AT_REST, NEVER_FED, LONGER, LOOP_THAT_GOES_ON])
def test_a_process_that_goes_on_lives_and_leaves_nothing(program: str, tmp_path: Path) -> None:
    assert run(program, tmp_path / "actor.txt")[:3] == (0, "alive\n", "")


ASKED = """
import os, signal
def doing_this():
    os.kill(os.getpid(), signal.SIGUSR1)
doing_this()
print("alive")
"""


def test_a_process_that_is_asked_tells_its_stacks_and_lives(tmp_path: Path) -> None:
    status, said, stacks, _ = run(ASKED, tmp_path / "actor.txt")
    assert (status, said) == (0, "alive\n")
    assert "in doing_this" in stacks


def test_what_was_there_stays(tmp_path: Path) -> None:
    """Of the process before, which was stuck too."""
    stacks = tmp_path / "actor.txt"
    stacks.write_text("of before\n")
    run(STUCK_IN_PYTHON, stacks)
    assert stacks.read_text().startswith("of before\nTimeout")
