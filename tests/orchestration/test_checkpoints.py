"""A run's checkpoints: whole or not there, whatever fails while one is written; which ones stay."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.schema import CheckpointSettings
from learner.durable import write_durably
from learner.update_sums import UpdateSums
from orchestration.checkpoints import Best, CheckpointError, RunState, better, read_queue, read_state
from orchestration.learners import LearnerError, RankError
from orchestration.ledger import Ledger, LedgerError, State
from orchestration.replay_buffer import QueueError
from orchestration.run_folder import RunFolder
from orchestration.sampled import DispatchState
from orchestration.totals import RecorderState, Totals
from tests.orchestration.small_run import BEFORE, POLICY, SAMPLED, Recorder, Run, queued
from tests.orchestration.test_metrics import metrics


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    run.ledger.close()


def assert_whole(checkpoint: Path) -> int:
    """Every part is of one and the same update, which is returned."""
    update = read_state(checkpoint).update
    assert checkpoint.name == f"step-{update:06d}"
    assert [(checkpoint / "learner" / part).read_bytes() for part in ("a", "b")] == [b"weights %d" % update] * 2
    assert read_queue(checkpoint) == [queued(index) for index in range(1, update + 1)]
    with Ledger(checkpoint / "ledger.sqlite") as ledger:
        ledger.counts().check()
        assert ledger.indices(State.QUEUED) == list(range(1, update + 1))
    return update


# --- what is written -------------------------------------------------------------------------------------------------


async def test_a_checkpoint_holds_the_run(run: Run) -> None:
    await run.update(1)
    await run.update(2)
    assert run.there() == ["latest", "step-000001", "step-000002"]
    latest = run.folder.latest_checkpoint()
    assert latest is not None
    assert assert_whole(latest) == 2
    state = read_state(latest)
    assert state.dispatch == DispatchState(5, 2, 1, SAMPLED)
    assert state.recorder == RecorderState(12.5, Totals(own_tokens=4), 2 * 13)
    assert state.before == replace(BEFORE, payloads=())
    assert (state.best, state.policy, state.nonfinite) == (None, POLICY, 0)
    assert run.said == []


async def test_updates_in_a_row_without_a_step_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=3)
    for update, steps, in_a_row in [(1, 1, 0), (2, 0, 1), (3, 0, 2), (4, 1, 0)]:
        await run.nonfinite.look_at(update, UpdateSums(steps=steps), [])
        await run.update(update)
        assert read_state(run.folder.checkpoint(update)).nonfinite == in_a_row


async def test_figures_that_are_no_number_come_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    totals = Totals(own_abs_diff=float("inf"), sync_s=float("nan"))
    monkeypatch.setattr(Recorder, "state", lambda self: RecorderState(1.0, totals, 0))
    await run.update(1)
    back = read_state(run.folder.checkpoint(1)).recorder.totals
    assert back.own_abs_diff == float("inf")
    assert back.sync_s != back.sync_s


async def test_a_ledger_that_does_not_balance_ends_the_run(run: Run) -> None:
    run.ledger._db.execute("UPDATE totals SET issued = 7")
    with pytest.raises(LedgerError, match="does not balance"):
        await run.update(1)


# --- a full disk, a crash --------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process is gone: nothing of it runs any more, clean-up neither."""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], Callable[[], int]]:
    """Let call number n of what touches the disk fail, of a write after half of its bytes; returns the calls made."""
    calls, fails_at = [0], [-1]
    error: list[BaseException] = []
    real = {name: getattr(os, name) for name in ("write", "fsync", "rename", "mkdir", "open")}

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            calls[0] += 1
            if calls[0] == fails_at[0]:
                if name == "write":
                    real["write"](arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise error[0]
            return real[name](*arguments, **keywords)

        return call

    for name in real:
        monkeypatch.setattr(os, name, wrapped(name))

    def fail(number: int, what: BaseException) -> Callable[[], int]:
        calls[0], fails_at[0] = 0, number
        error[:] = [what]
        return lambda: calls[0]

    return fail


async def test_whatever_fails_the_checkpoint_before_is_usable(tmp_path: Path, failing: Any) -> None:
    """A full disk at each call in turn, then a crash at each: what `latest` names is whole, and the run can go on."""
    run = Run(tmp_path)
    await run.update(1)
    made = failing(0, Crash())
    await run.update(2)
    steps = made()
    assert steps > 20
    run.ledger.close()
    for number in range(1, steps + 1):
        for what in (OSError(errno.ENOSPC, "No space left on device"), Crash()):
            failing(0, Crash())
            run.folder.discard()
            run = Run(tmp_path)
            await run.update(1)
            made = failing(number, what)
            try:
                await run.update(2)
            except Crash:
                assert isinstance(what, Crash)
            else:
                assert any("warning: checkpoint of update 2 not written" in line for line in run.said)
                assert not list(run.folder.checkpoints.glob(".step*"))
            assert made() >= number
            failing(0, Crash())
            run.ledger.close()
            run.folder.release()
            folder = RunFolder.reopen(run.folder.path)
            latest = folder.latest_checkpoint()
            assert latest is not None
            update = assert_whole(latest)
            folder.remove_leftovers(update)
            assert sorted(p.name for p in folder.checkpoints.iterdir()) == [
                "latest", *(f"step-{i:06d}" for i in range(1, update + 1)),
            ]  # fmt: skip
            folder.release()
    shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), "x/y: No space left on device"),
        (RankError("learner rank 1 failed in save: a: cannot be written"), "learner rank 1 failed in save"),
    ],
)
async def test_the_run_goes_on_without_a_checkpoint_but_not_past_its_end(run: Run, error: Exception, says: str) -> None:
    await run.update(1)
    run.learners.broken = error
    await run.update(2)
    assert run.said == [f"warning: checkpoint of update 2 not written: {run.said[0].split(': ', 2)[2]}"]
    assert says in run.said[0]
    assert run.said[0].endswith("going on with the one before")
    with pytest.raises(CheckpointError, match=r"checkpoint of update 10 not written: .*the one before"):
        await run.update(10)
    assert run.there() == ["latest", "step-000001"]
    assert read_state(run.folder.checkpoint(1)).update == 1


async def test_ranks_that_died_at_the_last_checkpoint_can_be_started_again_for_it(run: Run) -> None:
    await run.update(1)
    run.learners.broken = LearnerError("learner rank 1 failed in save: The actor died")
    with pytest.raises(LearnerError, match=r"^learner rank 1 failed in save: The actor died$"):
        await run.update(10)
    assert run.there() == ["latest", "step-000001"]


async def test_a_queue_that_has_died_costs_no_checkpoint(run: Run) -> None:
    """The dispatcher has not found out yet, so the ledger says that there are groups."""
    await run.update(1)
    run.queue.name, run.queue.lost = "second", {1, 10}
    await run.update(10)
    assert run.there() == ["latest", "step-000001", "step-000010"]
    [line] = run.said
    assert line == "warning: the replay queue died and was started again: the groups it held are sampled again"
    assert read_queue(run.folder.checkpoint(10)) == []
    with Ledger(run.folder.checkpoint(10) / "ledger.sqlite") as ledger:
        assert ledger.indices(State.IN_FLIGHT) == [1, 10]


async def test_a_queue_that_lacks_a_group_costs_the_checkpoint_only_but_not_the_last_one(run: Run) -> None:
    """It has not died, and yet a group that the ledger says is there is not."""
    await run.update(1)
    run.queue.broken = QueueError("ticket 2 is queued in the ledger but not in the replay queue")
    await run.update(2)
    [line] = run.said
    assert line.startswith("warning: checkpoint of update 2 not written: ticket 2 is queued in the ledger but not in")
    assert run.there() == ["latest", "step-000001"]
    with pytest.raises(CheckpointError, match="checkpoint of update 10 not written: ticket 2 is queued"):
        await run.update(10)
    run.queue.broken = None
    await run.update(3)
    assert run.there() == ["latest", "step-000001", "step-000003"]


@pytest.mark.parametrize(
    ("elsewhere", "says"),
    [
        (("a", "b", "state.json"), "state.json was written by the learner but is not here"),
        (("b",), "learner/b was written"),
    ],
)
async def test_weights_the_driver_does_not_see_are_no_checkpoint(
    run: Run, elsewhere: tuple[str, ...], says: str
) -> None:
    """The learner's node has a disk of its own under the same name."""
    await run.update(1)
    run.learners.elsewhere = elsewhere
    await run.update(2)
    [line] = run.said
    assert says in line
    assert "run.root must be on a file system all nodes see" in line
    assert run.there() == ["latest", "step-000001"]
    with pytest.raises(CheckpointError, match=r"run\.root"):
        await run.update(10)


async def test_a_rank_that_is_late_does_not_bring_a_failed_checkpoint_back(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save ran out of time; the rank goes on writing, into a folder that is gone."""
    asked: list[Path] = []

    async def late(folder: str) -> None:
        asked.append(Path(folder))
        assert Path(folder).is_dir()  # made by the driver
        raise LearnerError("the learner's ranks did not save within 1 s (deepspeed.timeout_s)")

    monkeypatch.setattr(run.learners, "save", late)
    await run.update(1)
    assert run.there() == []
    with pytest.raises(FileNotFoundError):
        write_durably(asked[0] / "layer-00000.safetensors", b"x")
    assert run.there() == []


async def test_what_a_failed_checkpoint_left_is_swept_at_the_next(run: Run) -> None:
    left = run.folder.partial(run.folder.checkpoint(1)) / "learner"
    left.mkdir()
    (left / "layer-00000.safetensors").write_bytes(b"x")
    (run.folder.checkpoints / ".step-000000.removed.partial").mkdir()
    await run.update(2)
    assert run.there() == ["latest", "step-000002"]


async def test_a_ledger_that_cannot_be_copied_costs_the_checkpoint_only(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Ledger, path: Path) -> None:
        raise LedgerError(f"{path}: database or disk is full")

    monkeypatch.setattr(Ledger, "backup", full)
    await run.update(1)
    assert "database or disk is full" in run.said[0]
    assert run.there() == []
    monkeypatch.undo()
    await run.update(2)
    assert run.there() == ["latest", "step-000002"]


# --- which ones stay -------------------------------------------------------------------------------------------------


async def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=2, best_by="success")
    for number, success in enumerate([0.1, 0.9, 0.3, 0.4, 0.2], start=1):
        await run.update(number, success=success)
    assert run.there() == ["latest", "step-000002", "step-000004", "step-000005"]
    assert read_state(run.folder.checkpoint(5)).best == Best(by="success", update=2, value=0.9)
    await run.update(6, success=0.95)
    assert run.there() == ["latest", "step-000005", "step-000006"]
    run.ledger.close()


def test_the_best_is_by_hand() -> None:
    highest = CheckpointSettings(best_by="success")
    lowest = CheckpointSettings(best_by="loss", best_is="lowest")
    first = better(None, highest, 1, metrics(1, success=0.5))
    assert first == Best(by="success", update=1, value=0.5)
    assert better(first, highest, 2, metrics(2, success=0.4)) == first
    assert better(first, highest, 2, metrics(2, success=0.5)) == Best(by="success", update=2, value=0.5)
    assert better(first, highest, 2, metrics(2, success=float("nan"))) == first
    assert better(None, highest, 2, metrics(2, success=float("nan"))) is None
    assert (
        better(None, CheckpointSettings(best_by="logprob_abs_diff_mean"), 2, metrics(2, logprob_abs_diff_mean=None))
        is None
    )
    # Another metric than before: the old best is of no meaning.
    assert better(first, lowest, 3, metrics(3, loss=2.0)) == Best(by="loss", update=3, value=2.0)
    assert better(Best(by="loss", update=1, value=1.0), lowest, 3, metrics(3, loss=2.0)) == Best(
        by="loss", update=1, value=1.0
    )
    assert better(first, CheckpointSettings(), 2, metrics(2)) is None


# --- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("run.json", None, "run.json: cannot be read: No such file"),
        ("run.json", b'{"format": 1', "run.json: no state of a run this version reads"),
        ("run.json", b"{}", "run.json: no state of a run this version reads: format: Field required"),
        ("queue.msgpack", None, "queue.msgpack: cannot be read: No such file"),
        ("queue.msgpack", b"\x92\xc4", "queue.msgpack: damaged"),
        ("queue.msgpack", b"\x05", "queue.msgpack: damaged: messages: int instead of list"),
        ("queue.msgpack", b"\x91\x05", "queue.msgpack: damaged: a list of something else than messages"),
        ("queue.msgpack", b"\x90\x05", "queue.msgpack: damaged: 1 bytes behind the end"),
        ("queue.msgpack", b"\x91\x90", "queue.msgpack: damaged: a list of something else than messages"),
        ("queue.msgpack", b"\x91\x91\x05", "queue.msgpack: damaged: message: list instead of bytes"),
        ("queue.msgpack", b"\xdd\xff\xff\xff\xff\xc4\x00", "queue.msgpack: damaged: message: nothing instead of bytes"),
        ("queue.msgpack", b"\x91\xc4\x03abc", "queue.msgpack: damaged: message 0: no group: 3 bytes"),
    ],
)
async def test_what_is_damaged_is_named(run: Run, file: str, content: bytes | None, says: str) -> None:
    await run.update(1)
    path = run.folder.checkpoint(1) / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        (read_state if file == "run.json" else read_queue)(run.folder.checkpoint(1))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_later_format_is_refused(run: Run) -> None:
    await run.update(1)
    path = run.folder.checkpoint(1) / "run.json"
    state = RunState.model_validate_json(path.read_bytes())
    path.write_text(state.model_copy(update={"format": 3}).model_dump_json())
    with pytest.raises(CheckpointError, match=r"run\.json: format 3, this version reads format 2"):
        read_state(run.folder.checkpoint(1))
