"""What a run leaves to go on from: checkpoints/step-NNNNNN, whole or not at all.

docs/checkpoints.md lists what is in it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.files import read_file
from configs.schema import CheckpointSettings, RunConfig
from configs.shown import one_line
from envs.codec import CodecError, read_header, read_messages
from learner.durable import partial_of, sync, write_durably
from learner.learner_state import StateError, check_there
from orchestration.dispatch import Dispatcher
from orchestration.evaluation import Evaluation
from orchestration.learners import LearnerError, Learners, RankError
from orchestration.ledger import LedgerError, State
from orchestration.metrics_table import UpdateMetrics
from orchestration.nonfinite import NonfiniteGuard
from orchestration.pivot_memory import PivotState
from orchestration.queue_client import STARTED_AGAIN, QueueClient
from orchestration.recorder import Recorder
from orchestration.replay_buffer import QueueError
from orchestration.run_folder import RunFolder
from orchestration.sampled import DispatchState
from orchestration.totals import RecorderState

FORMAT = 2
_MOST_STATE_BYTES, _MOST_QUEUE_BYTES = 2**28, 2**34
LEARNER, LEDGER, QUEUE, RUN = "learner", "ledger.sqlite", "queue.msgpack", "run.json"
SAMPLER, PIVOTS = "sampler", "pivots.json"

Read = TypeVar("Read", bound=BaseModel)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or cannot be read; names the folder and the cause."""


class Best(BaseModel):
    """The checkpoint with the best value so far of the metric `by`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: str
    update: int
    value: float


class RunState(BaseModel):
    """run.json. update: updates done. before: the first evaluation, which a resumed run does not repeat.

    policy: digest of the policy the run started from. nonfinite: updates in a row without a step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    format: int
    update: int = Field(ge=0)
    policy: str
    nonfinite: int = Field(ge=0)
    dispatch: DispatchState
    recorder: RecorderState
    before: Evaluation
    best: Best | None


@dataclass
class Checkpoints:
    """Writes a run's checkpoints.

    policy: digest of the policy the run started from. best: as the checkpoint knew it that the run goes on from.
    """

    config: RunConfig
    folder: RunFolder
    learners: Learners
    replay: QueueClient
    say: Callable[[str], None]
    before: Evaluation
    policy: str
    nonfinite: NonfiniteGuard
    best: Best | None = None

    async def write(self, update: int, dispatcher: Dispatcher, recorder: Recorder) -> None:
        """The run as it is after `update`. A failure is said and the run goes on with the checkpoint before.

        After the last update raises LearnerError where the ranks can be started again for it, else CheckpointError.
        Raises LedgerError when the ledger does not balance.
        """
        dispatcher.ledger.counts().check()
        final = self.folder.checkpoint(update)
        self.folder.sweep_checkpoints()
        try:
            try:
                await self._write(update, self.folder.partial(final), dispatcher, recorder)
            except QueueError:
                if not await self._queue_has_died(dispatcher):
                    raise
                await self._write(update, self.folder.partial(final), dispatcher, recorder)
        except (OSError, LearnerError, LedgerError, QueueError, StateError) as error:
            with suppress(OSError):  # the room it took is needed, and ranks that are late must find it gone
                self.folder.remove(partial_of(final))
            failed = f"checkpoint of update {update} not written: {_cause(error)}"
            if recorder.is_over(update):
                if isinstance(error, LearnerError) and not isinstance(error, RankError):
                    raise  # a rank died or hung
                raise CheckpointError(f"{failed}; the one before, if there is one, is untouched") from error
            self.say(f"warning: {failed}; going on with the one before")

    async def leave(self, dispatcher: Dispatcher, recorder: Recorder) -> str:
        """The run as it is between two updates, kept unless it is already; says how to go on with it."""
        update = dispatcher.version
        if not self.folder.checkpoint(update).exists():
            await self.write(update, dispatcher, recorder)
        latest = self.folder.latest_checkpoint()
        if latest is None:
            return f"interrupted after update {update}, which could not be kept, nor was one before"
        kept = "" if latest == self.folder.checkpoint(update) else f", which could not be kept; {latest.name} is there"
        command = shlex.join(("python", "orchestration/run.py", "--resume", str(self.folder.path)))
        return f"interrupted after update {update}{kept}; go on with: {command}"

    async def _queue_has_died(self, dispatcher: Dispatcher) -> bool:
        """What it held is in flight again, except what its successor has got meanwhile."""
        name, there = await self.replay.contents()
        if died := name != dispatcher.queue:
            dispatcher.book_lost(name, there)
            self.say(f"warning: {STARTED_AGAIN}")
        return died

    async def _write(self, update: int, partial: Path, dispatcher: Dispatcher, recorder: Recorder) -> None:
        # Ledger, counters and figures are of one moment; tickets go on ending while the rest is written. The groups
        # queued at this moment stay in the queue, and the weights as they are, until the driver goes on.
        dispatcher.ledger.backup(partial / LEDGER)
        queued = dispatcher.ledger.indices(State.QUEUED)
        pivots = dispatcher.pivots.state()
        best = better(self.best, self.config.checkpoint, update, recorder.last)
        state = RunState(
            format=FORMAT,
            update=update,
            policy=self.policy,
            nonfinite=self.nonfinite.in_a_row,
            dispatch=dispatcher.state(),
            recorder=recorder.state(),
            before=replace(self.before, payloads=()),
            best=best,
        )
        write_durably(partial / RUN, state.model_dump_json(indent=1).encode())
        write_durably(partial / QUEUE, msgpack.packb(await self.replay.copy(queued)))
        if pivots is not None:
            (partial / SAMPLER).mkdir()
            write_durably(partial / SAMPLER / PIVOTS, pivots.model_dump_json().encode())
        (partial / LEARNER).mkdir()  # here and by no rank: see save_state
        await self.learners.save(str(partial / LEARNER))
        check_there(partial / LEARNER)
        sync(partial / LEDGER)
        final = self.folder.checkpoint(update)
        self.folder.publish(partial, final)
        self.folder.point_to(final)
        self.best = best
        self.folder.keep_checkpoints(self.config.checkpoint.keep, None if best is None else best.update)


def better(best: Best | None, settings: CheckpointSettings, update: int, metrics: UpdateMetrics | None) -> Best | None:
    """The best checkpoint once that of `update` is there; of equal ones the newer. None where no metric is named."""
    if settings.best_by is None or metrics is None:
        return None
    best = best if best is not None and best.by == settings.best_by else None
    value = getattr(metrics, settings.best_by)
    if value is None or not math.isfinite(value):
        return best
    if best is None or (value >= best.value if settings.best_is == "highest" else value <= best.value):
        return Best(by=settings.best_by, update=update, value=value)
    return best


def read_state(checkpoint: Path) -> RunState:
    """run.json of a checkpoint. Raises CheckpointError."""
    path = checkpoint / RUN
    state = _parsed(path, RunState)
    if state.format != FORMAT:
        raise CheckpointError(f"{path}: format {state.format}, this version reads format {FORMAT}")
    return state


def read_pivots(checkpoint: Path) -> PivotState:
    """What was learned of pivots, of a run whose sampler learns them. Raises CheckpointError."""
    return _parsed(checkpoint / SAMPLER / PIVOTS, PivotState)


def read_queue(checkpoint: Path) -> list[bytes]:
    """The encoded groups that were queued. Raises CheckpointError."""
    path = checkpoint / QUEUE
    try:
        groups = read_messages(read_file(path, _MOST_QUEUE_BYTES))
        for number, group in enumerate(groups):
            try:
                read_header(group)
            except CodecError as error:
                raise CodecError(f"message {number}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except CodecError as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    return groups


async def export_policy(folder: RunFolder, learners: Learners) -> None:
    """policy/ in Hugging Face format, as `transformers` and `vllm` load it."""
    partial = folder.partial(folder.policy)
    await learners.export(str(partial))
    folder.publish(partial, folder.policy)


def _parsed(path: Path, state: type[Read]) -> Read:
    """A state in a JSON file. Raises CheckpointError."""
    try:
        return state.model_validate_json(read_file(path, _MOST_STATE_BYTES))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        said = f"{path}: no state of a run this version reads: {place}: {problem['msg']}"
        raise CheckpointError(one_line(said)) from error  # names of keys are in it, whatever they are


def _cause(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    return str(error)
