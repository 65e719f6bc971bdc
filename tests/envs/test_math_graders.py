"""The graders of Math together: hanging answers beside honest ones, slow starts, an end in the midst of work, forks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from configs.environments import MathSettings
from envs.base import BadEnvironment, Failure
from envs.math import grader, grading
from envs.math.env import Math
from envs.math.grading import GRADERS, Graders, stop_graders
from envs.registry import check_env
from tests.envs.test_math_grading import gone_within, is_running

ROOT = Path(__file__).resolve().parents[2]
FAKE = """
import json, sys, time
time.sleep({start_s})
print(json.dumps({{"ready": True}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["answer"] == "hang": time.sleep(60)
    print(json.dumps({{"id": asked["id"], "equal": {equal}}}), flush=True)
"""


def fake(monkeypatch: pytest.MonkeyPatch, folder: Path, start_s: float = 0.0, equal: bool = True) -> None:
    (folder / "fake.py").write_text(FAKE.format(start_s=start_s, equal=equal))
    monkeypatch.setattr(grading, "_graders", {})
    monkeypatch.setattr(grader, "COMMAND", (sys.executable, str(folder / "fake.py")))


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graders]:
    fake(monkeypatch, tmp_path)
    made = Graders(512)
    yield made
    made.close()


def verdict(pool: Graders, answer: str, timeout_s: float) -> tuple[str, float]:
    began = time.perf_counter()
    try:
        said = str(pool.equal("x", answer, timeout_s))
    except Failure as failure:
        said = str(failure)
    return said, time.perf_counter() - began


# --- answers that hang -----------------------------------------------------------------------------------------------


def test_two_hanging_answers_fail_no_other(pool: Graders) -> None:
    answers = ["hang"] * GRADERS + ["y"] * 6
    with ThreadPoolExecutor(len(answers)) as threads:
        found = list(threads.map(lambda answer: verdict(pool, answer, 1.5), answers))
    assert all("took longer than 1.5 s" in said for said, _ in found[:GRADERS])
    assert [said for said, _ in found[GRADERS:]] == ["True"] * 6
    assert max(seconds for _, seconds in found) < 3


def test_nobody_waits_longer_than_twice_the_time(pool: Graders) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: verdict(pool, "hang", 0.6), range(8)))
    assert any(said.startswith("no grader was free within 0.9 s (1.5 x env.grade_timeout_s)") for said, _ in found)
    assert max(seconds for _, seconds in found) < 1.2 + 0.5
    # Those that gave up left their places: nothing is graded for nobody.
    assert verdict(pool, "y", 2)[0] == "True"


# --- the start -------------------------------------------------------------------------------------------------------


def test_a_slow_start_is_waited_for_by_nobody_but_who_has_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, tmp_path, start_s=1.5)
    pool, began = Graders(512), time.perf_counter()
    pool.start()
    processes = pool.process_ids
    assert len(processes) == GRADERS
    assert time.perf_counter() - began < 0.5
    assert verdict(pool, "y", 0.1)[0].startswith("the grading process was still starting")
    assert pool.equal("x", "y", 0.5, patience_s=20)
    assert pool.process_ids == processes
    pool.close()


def test_a_killed_grader_is_replaced_before_it_is_asked(pool: Graders) -> None:
    pool.start()
    before = set(pool.process_ids)
    assert "took longer" in verdict(pool, "hang", 0.5)[0]
    assert len(set(pool.process_ids)) == GRADERS
    assert len(set(pool.process_ids) & before) == GRADERS - 1


@pytest.fixture
def settings(tmp_path: Path) -> MathSettings:
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"question": "Half of 7?", "answer": "7/2"}) + "\n")
    return MathSettings(data=str(file), grade_timeout_s=2, grade_memory_mib=777)


def test_an_environment_starts_the_graders_and_checks_one(settings: MathSettings) -> None:
    Math(settings)
    assert len(grading.graders(777).process_ids) == GRADERS
    check_env(settings)


@pytest.mark.parametrize("cause", ["died (exit code 1) at its start; see why", "cannot be started", "for different"])
def test_a_check_says_why_nothing_can_be_graded(
    cause: str, settings: MathSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, tmp_path, equal=False)
    if cause != "for different":
        command = (sys.executable, "-c", "raise ImportError") if "died" in cause else ("/no/such/python",)
        monkeypatch.setattr(grader, "COMMAND", command)
    with pytest.raises(BadEnvironment, match=r"^answers cannot be graded: ") as caught:
        check_env(settings)
    assert cause in str(caught.value)
    stop_graders()


# --- the end ---------------------------------------------------------------------------------------------------------


def test_an_end_in_the_midst_of_work_is_a_failure_and_starts_nothing(pool: Graders) -> None:
    pool.start()
    processes = pool.process_ids
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(verdict, pool, "hang", 5) for _ in range(4)]
        time.sleep(0.5)
        pool.close()
        found = [future.result() for future in asked]
    assert all(said not in ("True", "False") and seconds < 3 for said, seconds in found)
    assert pool.process_ids == []
    assert all(gone_within(process_id, 5) for process_id in processes)
    assert verdict(pool, "y", 1)[0].startswith("grading has ended")


def test_a_fork_while_a_thread_grades_keeps_no_grader_alive(tmp_path: Path) -> None:
    """The parent dies; its forked child lives on and must not hold the grader's input open."""
    program = (
        "import os, threading, time\nfrom envs.math import grading\n"
        "pool = grading.graders(512)\nassert pool.equal('x+1', '1+x', 20)\n"
        "threading.Thread(target=lambda: pool.equal('x/7', '\\\\Gamma(10^9)', 2), daemon=True).start()\n"
        "time.sleep(0.3)\nchild = os.fork()\n"
        "if child == 0: time.sleep(30); os._exit(0)\n"
        "print(child, *pool.process_ids, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.stdout is not None
    child, *processes = map(int, done.stdout.readline().split())
    try:
        assert processes
        assert all(gone_within(process_id, 6) for process_id in processes)
        assert is_running(child)
    finally:
        subprocess.run(["kill", "-9", str(child)], check=False)
        done.stdout.close()
        done.wait()
