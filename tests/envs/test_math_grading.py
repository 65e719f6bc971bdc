"""Grading of Math: what is equal and what is not, and what comes of a grader that hangs, dies or talks nonsense."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from configs.environments import MathSettings
from envs.base import Failure
from envs.math import grader, grading
from envs.math.answers import checked
from envs.math.grader import Grader
from envs.math.grading import GRADERS, is_right, stop_graders

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = MathSettings(data="unused", grade_timeout_s=20)


def right(reference: str, answer: str) -> bool:
    return is_right(checked(reference), checked(answer), SETTINGS)


# --- a grader that fails ---------------------------------------------------------------------------------------------

READY = "import json, os, sys, time\nprint(json.dumps({'ready': True}), flush=True)\n"
GOOD = READY + "for line in sys.stdin: print(json.dumps({'id': json.loads(line)['id'], 'equal': True}), flush=True)\n"
FAKES = {
    "sleeps": (READY + "sys.stdin.readline(); time.sleep(60)", "took longer than 0.2 s (env.grade_timeout_s)"),
    "reads nothing": (READY + "time.sleep(60)", "took longer than 0.2 s (env.grade_timeout_s)"),
    "garbage": (READY + "sys.stdin.readline(); print('\\x00 {[', flush=True); time.sleep(60)", "cannot be read"),
    "deep": (READY + "sys.stdin.readline(); print('[' * 4000, flush=True); time.sleep(60)", "cannot be read"),
    "no object": (READY + "sys.stdin.readline(); print('1', flush=True); time.sleep(60)", "cannot be read"),
    "no boolean": (READY + 'sys.stdin.readline(); print(\'{"id": 1, "equal": 1}\', flush=True)', "cannot be read"),
    "another's": (READY + 'sys.stdin.readline(); print(\'{"id": 9, "equal": true}\', flush=True)', "cannot be read"),
    "endless": (READY + "sys.stdin.readline()\nwhile True: print('x' * 999, end='', flush=True)", "more than a reply"),
    "half a line": (
        READY + "sys.stdin.readline(); print('{', end='', flush=True); time.sleep(60)",
        "longer than 0.2 s",
    ),
    "dies": (READY + "sys.stdin.readline(); os._exit(7)", "died (exit code 7)"),
    "is killed": (READY + "sys.stdin.readline(); os.kill(os.getpid(), 9)", "died (exit code -9)"),
    "shuts up": (READY + "os.close(1); time.sleep(60)", "died (exit code None)"),
    "never ready": ("import time; time.sleep(60)", "did not start within 0.2 s"),
    "not ready": ("print('{}', flush=True); input()", "did not say that it is ready"),
    "dies at once": (
        "raise ImportError",
        "died (exit code 1) at its start; see why: python -m envs.math.grader_process",
    ),
}


@pytest.fixture
def no_graders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """None of those that other tests use."""
    monkeypatch.setattr(grading, "_graders", {})
    monkeypatch.setattr(grader, "START_ALLOWANCE_S", 20)
    yield
    stop_graders()


def is_running(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("name", FAKES)
def test_a_broken_grader_is_a_failure_with_its_cause_and_is_replaced(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, cause = FAKES[name]
    (tmp_path / "fake.py").write_text(program)
    (tmp_path / "good.py").write_text(GOOD)
    made = Grader(512)
    monkeypatch.setattr(grader, "COMMAND", (sys.executable, str(tmp_path / "fake.py")))
    if name == "never ready":
        monkeypatch.setattr(grader, "START_ALLOWANCE_S", 0.2)
    began, processes = time.perf_counter(), children()
    with pytest.raises(Failure) as caught:
        made.equal("x", "y", 0.2 if "longer" in cause else 20)
    assert cause in str(caught.value)
    assert time.perf_counter() - began < 5
    assert made.process_id is None
    assert children() <= processes
    monkeypatch.setattr(grader, "COMMAND", (sys.executable, str(tmp_path / "good.py")))
    monkeypatch.setattr(grader, "START_ALLOWANCE_S", 60)
    assert made.equal("x", "y", 20)
    made.stop()


def children() -> set[int]:
    """Processes this one started that still run."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(entry.name))
    return found


def test_a_command_that_is_missing_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader, "COMMAND", ("/no/such/python",))
    with pytest.raises(Failure, match="cannot be started"):
        Grader(512).equal("x", "y", 1)


@pytest.fixture
def hungry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Grader]:
    """The real process, with a judge that eats memory and swallows the error, as the library may."""
    (tmp_path / "hungry.py").write_text(
        "import sys\nfrom envs.math import grader_process\n"
        "def judge(reference, answer):\n"
        "    held = []\n"
        "    try:\n"
        "        while reference == 'eat': held.append(bytearray(2**20))\n"
        "        if reference in ('a lot', 'then fail'): held = bytearray(100 * 2**20)\n"
        "        if reference == 'some': held = bytearray(45 * 2**20)\n"
        "        if reference == 'then fail': held = bytearray(10**9)\n"
        "    except MemoryError: pass\n"
        "    return answer == 'equal'\n"
        "grader_process.load_judge = lambda: judge\n"
        "grader_process.main(int(sys.argv[1]))\n"
    )
    monkeypatch.setattr(grader, "COMMAND", (sys.executable, str(tmp_path / "hungry.py")))
    made = Grader(256)
    yield made
    made.stop()


def test_memory_is_limited(hungry: Grader) -> None:
    assert hungry.equal("fine", "equal", 20)
    with pytest.raises(
        Failure, match=r"^grading an answer came near the memory limit of 256 MiB \(env.grade_memory_mib\)$"
    ):
        hungry.equal("eat", "", 20)
    assert hungry.equal("fine", "equal", 20)


def test_what_was_swallowed_far_from_the_limit_is_no_wrong_answer(hungry: Grader) -> None:
    with pytest.raises(Failure, match="came near the memory limit of 256 MiB"):
        hungry.equal("then fail", "", 20)
    assert not hungry.equal("fine", "", 20)
    assert hungry.equal("a lot", "equal", 20)


def test_the_memory_of_answers_before_is_not_held_against_one(hungry: Grader) -> None:
    for reference in ("a lot", "fine", "some", "fine"):
        assert hungry.equal(reference, "equal", 20)
        assert not hungry.equal("fine", "", 20)


def test_a_process_that_has_become_large_makes_room(hungry: Grader) -> None:
    """So that the next answer has all the memory it may have."""
    for reference, kept in (("fine", True), ("a lot", False), ("some", False), ("fine", True)):
        assert hungry.equal(reference, "equal", 20)
        assert (hungry.process_id is not None) == kept


@pytest.mark.parametrize("answer", ["9^{9^{9^{9}}}", "2^{100000000000}"])
def test_endless_answers_end_at_the_limit(answer: str, no_graders: None) -> None:
    settings = MathSettings(data="unused", grade_timeout_s=0.4)
    for _ in range(GRADERS):  # they take turns: none is still starting
        is_right("x+1", "1+x", SETTINGS)
    began = time.perf_counter()
    with pytest.raises(Failure, match=r"took longer than 0\.\d+ s \(env\.grade_timeout_s\)"):
        is_right("\\frac{x}{7}", answer, settings)
    assert time.perf_counter() - began < 3
    assert right("x+1", "1+x")


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Grader]:
    """One that is fast to start and finds everything equal."""
    (tmp_path / "good.py").write_text(GOOD)
    monkeypatch.setattr(grader, "COMMAND", (sys.executable, str(tmp_path / "good.py")))
    made = Grader(512)
    yield made
    made.stop()


def test_a_grader_that_died_while_idle_is_replaced_without_a_word(good: Grader) -> None:
    assert good.equal("x", "y", 20)
    first = good.process_id
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert gone_within(first, 5)
    assert good.equal("x", "y", 20)
    assert good.process_id != first


def test_threads_share_a_few_processes(no_graders: None) -> None:
    pairs = [(f"x+{i}", f"{j}+x") for i in range(6) for j in range(6)]
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda pair: right(*pair), pairs))
    assert verdicts == [a[2:] == b[:-2] for a, b in pairs]
    (shared,) = grading._graders.values()
    assert len(set(shared.process_ids)) == GRADERS


def test_an_interrupt_leaves_no_reply_behind(good: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    assert good.equal("x", "y", 20)
    with monkeypatch.context() as patch:

        def interrupt(child: object, timeout_s: float) -> None:
            raise KeyboardInterrupt

        patch.setattr(grader, "_reply", interrupt)
        with pytest.raises(KeyboardInterrupt):
            good.equal("x", "y", 20)
    assert good.process_id is None
    assert good.equal("x", "y", 20)


# --- no process is left ----------------------------------------------------------------------------------------------

ASK = (
    "from configs.environments import MathSettings; from envs.math import grading; import os, sys, time\n"
    "settings = MathSettings(data='unused', grade_timeout_s=20); grading.graders(1024).start()\n"
    "assert grading.is_right('x+1', '1+x', settings)\n"
    "print(*grading.graders(1024).process_ids, flush=True)\n"
)


def gone_within(process_id: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(process_id) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(process_id)


@pytest.mark.parametrize("end", ["raise SystemExit(3)", "os.kill(os.getpid(), 9)"])
def test_the_grader_ends_with_its_parent(end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK + end], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert all(gone_within(process_id, 5) for process_id in map(int, done.stdout.split()))


def test_the_grader_ends_with_its_parent_even_in_the_midst_of_work() -> None:
    hang = "import threading; threading.Timer(0.3, os.kill, (os.getpid(), 9)).start()\n"
    hang += "grading.is_right('x/7', '9^{9^{9^{9}}}', settings.model_copy(update={'grade_timeout_s': 0.6}))\n"
    done = subprocess.run(
        [sys.executable, "-c", ASK + hang], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == -9
    assert all(gone_within(process_id, 8) for process_id in map(int, done.stdout.split()))


def test_a_forked_process_has_a_grader_of_its_own() -> None:
    fork = (
        "pid = os.fork()\n"
        "assert grading.is_right('x+2', '2+x', settings)\n"
        "print(*grading.graders(1024).process_ids, flush=True)\n"
        "if pid: assert os.waitpid(pid, 0)[1] == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", ASK + fork], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    graders = list(map(int, done.stdout.split()))
    # The first line twice (the parent's), the child's.
    assert len(set(graders)) == GRADERS + 1
    assert all(gone_within(process_id, 5) for process_id in graders)


def test_the_process_by_itself_speaks_lines_and_ends_with_its_input() -> None:
    lines = [json.dumps({"id": i, "reference": "1/2", "answer": a, "limit_s": 5}) for i, a in enumerate(["0.5", "x"])]
    done = subprocess.run(
        [sys.executable, "-m", "envs.math.grader_process", "512"], cwd=ROOT, input="\n".join(lines) + "\n",
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"ready": True},
        {"id": 0, "equal": True, "last": False},
        {"id": 1, "equal": False, "last": False},
    ]
