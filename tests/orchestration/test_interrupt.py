"""Ctrl-C ends training between two updates, with a checkpoint; twice, or before training, it ends all at once."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from orchestration.interrupt import SIGNALS, Interrupt, Interrupted
from tests.orchestration.small_run import Dispatcher, Run

ONCE = "interrupted: the update under way is finished and kept; once more ends the run at once"


async def forever() -> None:
    await asyncio.Event().wait()


async def three() -> int:
    return 3


async def fails() -> None:
    raise OSError("no room")


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_while_training_ends_what_may_be_given_up(number: signal.Signals) -> None:
    said: list[str] = []
    interrupt = Interrupt(said.append)
    with interrupt.heard(), interrupt.training():
        waiting = asyncio.ensure_future(interrupt.unless_asked(forever()))
        await asyncio.sleep(0)
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted):
            await asyncio.wait_for(waiting, 5)
        with pytest.raises(Interrupted):  # and whatever would be waited for from then on
            await interrupt.unless_asked(three())
    assert said == [ONCE]


async def test_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt = Interrupt(print)
    with interrupt.heard(), interrupt.training():
        assert await interrupt.unless_asked(three()) == 3
        with pytest.raises(OSError, match="no room"):
            await interrupt.unless_asked(fails())
    assert not interrupt.asked


@pytest.mark.parametrize("training", [False, True])
async def test_before_training_and_a_second_time_it_ends_at_once(training: bool) -> None:
    said: list[str] = []

    async def run() -> None:
        interrupt = Interrupt(said.append)
        with interrupt.heard():
            if training:
                with interrupt.training():
                    os.kill(os.getpid(), signal.SIGINT)
                    await asyncio.sleep(0.05)  # an update, which is finished
                    os.kill(os.getpid(), signal.SIGINT)
                    await forever()
            os.kill(os.getpid(), signal.SIGINT)
            await forever()

    task = asyncio.ensure_future(run())
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert said == [ONCE] * training


async def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupt(print).heard():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.fixture
def left(tmp_path: Path) -> Run:
    return Run(tmp_path)


async def leave(run: Run, version: int) -> str:
    dispatcher: Any = Dispatcher(run.ledger, run.pivots)
    dispatcher.version = version
    run.learners.version = version
    return await run.checkpoints.leave(dispatcher, run.recorder)


async def test_what_is_not_kept_yet_is(left: Run) -> None:
    await left.update(1)
    kept = (left.folder.checkpoint(1) / "run.json").stat().st_mtime_ns
    says = f"interrupted after update 1; go on with: python orchestration/run.py --resume {left.folder.path}"
    assert await leave(left, 1) == says
    assert (left.folder.checkpoint(1) / "run.json").stat().st_mtime_ns == kept  # it was there
    assert (await leave(left, 2)).startswith("interrupted after update 2; go on with: ")
    assert (left.folder.checkpoints / "latest").read_text() == "step-000002\n"


async def test_the_command_can_be_typed_as_it_is_said(tmp_path: Path) -> None:
    run = Run(tmp_path / "my runs")
    await run.update(1)
    assert (await leave(run, 1)).endswith(f"--resume '{run.folder.path}'")


async def test_where_nothing_could_be_kept(left: Run) -> None:
    await left.update(1)
    left.folder.remove(left.folder.checkpoint(1))
    (left.folder.checkpoints / "latest").unlink()
    left.learners.broken = OSError("No space left on device")
    assert await leave(left, 1) == "interrupted after update 1, which could not be kept, nor was one before"


async def test_what_cannot_be_kept_is_said(left: Run) -> None:
    await left.update(1)
    left.learners.broken = OSError("No space left on device")
    assert await leave(left, 2) == (
        "interrupted after update 2, which could not be kept; step-000001 is there; "
        f"go on with: python orchestration/run.py --resume {left.folder.path}"
    )
    assert (left.folder.checkpoints / "latest").read_text() == "step-000001\n"
    assert "checkpoint of update 2 not written" in left.said[-1]
