"""What is made of a dump of stacks, whoever wrote it."""

from __future__ import annotations

import pytest

from actors.stuck import stuck_in

HEAD = b"Current thread 0x00007f3a (most recent call first):\n"


def frame(path: str, line: object, function: str) -> bytes:
    return f'  File "{path}", line {line} in {function}\n'.encode()


def test_the_innermost_calls_down_to_the_workers_own() -> None:
    own = frame("/project/envs/worker_episodes.py", 24, "_step") + frame("/project/envs/worker.py", 50, "main")
    written = (
        HEAD + frame("/usr/lib/python3.11/socket.py", 706, "readinto") + frame("/home/me/maze.py", 40, "step") + own
    )
    assert stuck_in(written) == " in readinto (socket.py:706) < step (maze.py:40)"
    assert stuck_in(HEAD + own) == ""


def test_no_more_than_five_of_a_deep_recursion() -> None:
    written = HEAD + b"".join(frame("maze.py", number, "search") for number in range(1, 100))
    assert stuck_in(written) == " in " + " < ".join(f"search (maze.py:{number})" for number in range(1, 6))


@pytest.mark.parametrize(
    "written",
    [
        b"", HEAD, b"\x00\xff" * 1000, frame("maze.py", "9" * 8, "step"), frame("maze.py", -1, "step"),
        frame("maze.py", 1, "s" * 201), frame("m" * 1001, 1, "step"), b'  File "maze.py", line 1 in',
    ],
)  # fmt: skip
def test_what_is_no_stack_says_nothing(written: bytes) -> None:
    assert stuck_in(written) == ""


def test_odd_names_stay_on_one_line_of_text() -> None:
    said = stuck_in(b'  File "ma\xff\x1b[31mze.py", line 1 in st\rep\n' + frame("x" * 900, 2, "y" * 200))
    assert said.isprintable()
    assert said.startswith(" in st\\rep (ma")
    assert len(said) < 500
