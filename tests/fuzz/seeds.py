"""What the fuzzer begins with: messages of real groups, one of each kind samplers make.

`python -m tests.fuzz.seeds FOLDER` writes them; tests/fuzz/corpus holds them, and inputs that once broke something.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from envs.codec import encode_group
from envs.trajectory import (
    Credit,
    Group,
    GroupStats,
    PivotTrial,
    Role,
    Row,
    Segment,
    Stream,
    Ticket,
    Trajectory,
    Verdict,
    no_floats,
    no_ints,
)
from tests.fuzz.codec import MESSAGE, parts_of


def groups() -> dict[str, Group]:
    """Name -> a small group."""
    prompt, sketch, first = _given(Role.PROMPT, 1, 2), _sampled(Role.SKETCH, 3), _sampled(Role.ANSWER, 4, 5)
    asked, second = _given(Role.OBSERVATION, 6), _sampled(Role.ANSWER, 7, version=2)
    solved = Trajectory((prompt, first), Verdict.SOLVED, 1.0, "up")
    wrong = Trajectory((prompt, first, asked, second), Verdict.WRONG, -0.5, "down")
    guided = Trajectory((prompt, second), Verdict.UNPARSABLE, -0.1, sketch=0)
    branch = Trajectory((prompt, first, asked, second), Verdict.SOLVED, 1.0, parent=0, pivot=3)
    broken = Trajectory((prompt,), Verdict.FAILED, 0.0, cause="it did not answer within 10 s")
    listed = Trajectory((prompt, sketch, asked, sketch), Verdict.WRONG, 0.0)
    plain = np.array([1, 2], np.int32)
    two = (Row(0, 1, (_credit(1, 2, 1.0),)), Row(1, 1, (_credit(1, 4, -0.5),)))
    sketches = Row(0, 1, (Credit(1, 2, Stream.SKETCH, "sketches", 1.0), Credit(3, 4, Stream.SKETCH, "sketches", 0.0)))
    resampled = Row(1, 3, (Credit(3, 4, Stream.BRANCH, "branch/0", 1.0, 0.5, advantage=0.25),))
    return {
        "nothing": Group(Ticket(0, "", 0), "", (), ()),
        "parallel": Group(Ticket(1, "frozen_lake", 2), "parallel", (solved, wrong), two),
        "sesa": Group(
            Ticket(2, "sokoban", 4, attempt=1), "sesa", (listed, guided),
            (sketches, Row(1, 1, (_credit(1, 2, 0.0),), plain, 2.0)), GroupStats(2, 1, 1, 1, 0, 3),
        ),
        "dde": Group(
            Ticket(3, "math", 2**40), "dde", (wrong, branch), (resampled,),
            pivots=(PivotTrial(0, 3, 0.5, (0.5, 1.25), branches=2, solved=1, gain=0.75),),
        ),
        "failed": Group(Ticket(4, "sudoku", 8), "parallel", (broken, solved), (Row(1, 1, (_credit(1, 2, 1.0),)),)),
    }  # fmt: skip


def _given(role: Role, *token_ids: int) -> Segment:
    return Segment(role, np.array(token_ids, np.int32), no_floats(), no_ints())


def _sampled(role: Role, *token_ids: int, version: int = 0) -> Segment:
    n = len(token_ids)
    logprobs, versions = np.full(n, -0.5, np.float32), np.full(n, version, np.int32)
    return Segment(role, np.array(token_ids, np.int32), logprobs, versions, ended=n > 1)


def _credit(first: int, last: int, reward: float) -> Credit:
    return Credit(first, last, Stream.SOLUTION, "all", reward)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, group in groups().items():
        message = encode_group(group)
        (folder / f"{name}.message").write_bytes(MESSAGE + message)
        (folder / f"{name}.fitted").write_bytes(parts_of(message))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
