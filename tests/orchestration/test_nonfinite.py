"""Updates without a finite gradient: kept, counted in a row, and an end to it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig
from envs.codec import decode_group, encode_group
from learner.update_sums import UpdateSums
from orchestration.driver import Driver
from orchestration.interrupt import Interrupt
from orchestration.learners import LearnerError
from orchestration.nonfinite import NonfiniteGuard, read_batch
from orchestration.replay_buffer import Taken
from tests.builders import parallel_group

GROUPS = [encode_group(parallel_group(1.0, 0.0, index=i)) for i in range(2)]
SKIPPED, MADE = UpdateSums(skipped_steps=1), UpdateSums(steps=1)


async def test_the_batch_is_kept_whole(tmp_path: Path) -> None:
    path = await NonfiniteGuard(tmp_path / "nonfinite", limit=3).look_at(7, SKIPPED, GROUPS)
    assert path == tmp_path / "nonfinite" / "update-000007.msgpack"
    assert [decode_group(data).ticket.index for data in read_batch(path)] == [0, 1]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


async def test_nothing_is_written_while_steps_are_made(tmp_path: Path) -> None:
    assert await NonfiniteGuard(tmp_path / "nonfinite", limit=1).look_at(1, MADE, GROUPS) is None
    assert list(tmp_path.iterdir()) == []


async def test_the_run_stops_after_so_many_in_a_row(tmp_path: Path) -> None:
    guard = NonfiniteGuard(tmp_path / "nonfinite", limit=2)
    await guard.look_at(1, SKIPPED, GROUPS)
    await guard.look_at(2, MADE, [])
    await guard.look_at(3, SKIPPED, GROUPS)
    with pytest.raises(LearnerError, match=r"^2 updates in a row .*optim.max_nonfinite.*lower optim.lr"):
        await guard.look_at(4, SKIPPED, GROUPS)
    assert sorted(p.stem for p in (tmp_path / "nonfinite").iterdir()) == [f"update-{i:06d}" for i in (1, 3, 4)]


async def test_the_count_goes_on_where_a_checkpoint_left_it(tmp_path: Path) -> None:
    before = NonfiniteGuard(tmp_path / "nonfinite", limit=3)
    for update in (1, 2):
        await before.look_at(update, SKIPPED, GROUPS)
    assert before.in_a_row == 2
    with pytest.raises(LearnerError, match=r"^3 updates in a row"):
        await NonfiniteGuard(tmp_path / "nonfinite", 3, before.in_a_row).look_at(3, SKIPPED, GROUPS)
    after = NonfiniteGuard(tmp_path / "nonfinite", 3, before.in_a_row)
    await after.look_at(3, MADE, [])
    assert after.in_a_row == 0


# --- in the loop -----------------------------------------------------------------------------------------------------


class Learners:
    """Makes no step, ever."""

    async def update(self, payloads: Any) -> UpdateSums:
        return SKIPPED


class Books:
    """Stands in for dispatcher and recorder."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.ended: list[tuple[str, str]] = []

    def book_trained(self, taken: Taken) -> None:
        self.ended.append(("trained", ""))

    def book_untrained(self, taken: Taken, reason: str) -> None:
        self.ended.append(("untrained", reason))

    def warn(self, text: str) -> None:
        self.said.append(text)


async def test_the_loop_counts_the_tickets_as_filtered_and_goes_on_until_the_limit(tmp_path: Path) -> None:
    books: Any = Books()
    learners: Any = Learners()
    guard = NonfiniteGuard(tmp_path / "nonfinite", limit=2)
    nobody: Any = None
    driver = Driver(RunConfig(), books, books, nobody, learners, nobody, books, guard, books, Interrupt(print))
    payloads: Any = asyncio.get_running_loop().create_future()
    payloads.set_result(GROUPS)
    taken = Taken((), ())
    assert await driver._learn(1, taken, payloads) == SKIPPED
    assert books.ended == [("untrained", "the update had no finite loss and gradient")]
    assert "update 1 was left out" in books.said[0]
    assert "update-000001.msgpack" in books.said[0]
    with pytest.raises(LearnerError, match="2 updates in a row"):
        await driver._learn(2, taken, payloads)
    assert [state for state, _ in books.ended] == ["untrained", "untrained"]
