"""`--resume RUN`: a run's folder is taken back to its latest checkpoint, and the run goes on from there."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from configs.files import open_file
from configs.load import load_config, to_yaml
from configs.schema import RunConfig
from configs.shown import one_line
from learner.durable import partial_of, rename_durably, replace_durably, sync
from orchestration import evaluations
from orchestration.budget import is_spent, is_stopped
from orchestration.checkpoints import LEDGER, RunState, read_pivots, read_queue, read_state
from orchestration.ledger import Ledger, LedgerError, State
from orchestration.metrics import read_metrics
from orchestration.pivot_memory import PivotState, learns_pivots
from orchestration.run_folder import RunFolder

# What the state is of: with another one it would be another run. Everything else may be changed by an override.
FIXED = ("run.name", "run.root", "run.seed", "env", "sampler", "model", "grpo.groups_per_update", "eval.episodes",
         "eval.samples")  # fmt: skip


class ResumeError(ValueError):
    """The run cannot be resumed like this; says what to do."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a run goes on. queued: the encoded groups to put back into the queue, in order of their tickets.

    pivots: what DDE has learned of them; None where the sampler learns nothing.
    """

    config: RunConfig
    folder: RunFolder
    checkpoint: Path
    state: RunState
    queued: tuple[bytes, ...]
    again: int  # tickets in flight at the checkpoint
    said: tuple[str, ...]
    pivots: PivotState | None


def resume_point(path: Path, overrides: Sequence[str], config_path: Path | None) -> ResumePoint:
    """Read what there is to go on from; the folder's files are left as they are, its lock is held.

    Raises ResumeError, ConfigError, RunFolderError or CheckpointError.
    """
    folder = RunFolder.reopen(path)
    try:
        return _resume_point(folder, overrides, config_path)
    except BaseException:
        folder.release()
        raise


def point_in(folder: RunFolder, config: RunConfig) -> ResumePoint:
    """The latest checkpoint of the run that this process works on. Raises as `resume_point`, but for the lock."""
    checkpoint = folder.latest_checkpoint()
    if checkpoint is None:
        raise ResumeError(f"{folder.path} has none (checkpoint.every)")
    return _point(folder, config, checkpoint)


def _resume_point(folder: RunFolder, overrides: Sequence[str], config_path: Path | None) -> ResumePoint:
    saved, config = load_config(folder.config, ()), load_config(folder.config, overrides)
    if config_path is not None and (others := different(load_config(config_path, overrides), config)):
        raise ResumeError(
            f"--config {config_path} differs from {folder.config} in {others[0]}: leave --config away and change "
            "settings by overrides"
        )
    fixed = [key for key in different(saved, config) if any(f"{key}.".startswith(f"{name}.") for name in FIXED)]
    if fixed:
        raise ResumeError(
            f"{fixed[0]} cannot be changed when a run is resumed: start a new run, with model.path=RUN/policy"
        )
    try:
        checkpoint = folder.latest_checkpoint()
    except OSError as error:
        raise ResumeError(
            f"{error.filename} cannot be read: {error.strerror}: write a checkpoint's name there"
        ) from None
    if checkpoint is None:
        raise ResumeError(
            f"{folder.path} has no checkpoint to go on from (checkpoint.every): start the run anew under another name"
        )
    return _point(folder, config, checkpoint)


def _point(folder: RunFolder, config: RunConfig, checkpoint: Path) -> ResumePoint:
    """Everything a run goes on with, checked."""
    state = read_state(checkpoint)
    _check_updates(folder, config, state)
    _check_metrics(folder, state)
    _check_evaluations(folder)
    queued = read_queue(checkpoint)
    if len(queued) > config.queue.max_groups:
        raise ResumeError(
            f"queue.max_groups ({config.queue.max_groups}) is too small for the {len(queued)} groups queued"
        )
    if (size := sum(map(len, queued))) > config.queue.max_mib << 20:
        raise ResumeError(f"queue.max_mib ({config.queue.max_mib}) is too small for the {size} bytes of groups queued")
    counts = _counts(checkpoint / LEDGER)
    if counts.get(State.QUEUED, 0) != len(queued):
        raise ResumeError(
            f"{checkpoint}: {counts.get(State.QUEUED, 0)} groups queued in its ledger, {len(queued)} there"
        )
    again = counts.get(State.IN_FLIGHT, 0)
    return ResumePoint(
        config, folder, checkpoint, state, tuple(queued), again, _said(folder, checkpoint, state, counts),
        read_pivots(checkpoint) if learns_pivots(config) else None,
    )  # fmt: skip


def check_policy(point: ResumePoint, policy: str, digest: str) -> None:
    """Raises ResumeError when `policy`, of this digest, is not what the run started from."""
    if digest != point.state.policy:
        raise ResumeError(
            f"model.path: {policy} is not the policy {point.folder.path} started from: its files differ; "
            "put those back, or start a new run with model.path=RUN/policy"
        )


def roll_back(point: ResumePoint) -> None:
    """Take the folder back to the checkpoint: what came after it never happened. May be done again after a crash."""
    folder, recorded = point.folder, point.state.recorder.metrics_bytes
    folder.remove_leftovers(point.state.update)
    for log in ("-wal", "-shm"):
        folder.ledger.with_name(folder.ledger.name + log).unlink(missing_ok=True)
    partial = partial_of(folder.ledger)
    shutil.copyfile(point.checkpoint / LEDGER, partial)
    sync(partial)
    rename_durably(partial, folder.ledger)
    os.truncate(folder.metrics, recorded)
    sync(folder.metrics)
    evaluations.roll_back(folder, point.state.update)
    replace_durably(folder.config, to_yaml(point.config).encode())


def different(one: RunConfig, other: RunConfig) -> list[str]:
    """The dotted keys in which two configurations differ, in the schema's order."""
    left, right = dict(_leaves(one.model_dump(mode="json"))), dict(_leaves(other.model_dump(mode="json")))
    return [key for key in {**left, **right} if key not in left or key not in right or left[key] != right[key]]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_updates(folder: RunFolder, config: RunConfig, state: RunState) -> None:
    """Raises ResumeError when there is nothing left to do."""
    done, wanted = state.update, config.run.updates
    if done > wanted:
        raise ResumeError(f"run.updates={wanted}: {folder.path} has done {done} already; give a larger number")
    if done == wanted and folder.summary.exists():
        raise ResumeError(
            f"{folder.path} is finished: {done} updates of {wanted}; go on with run.updates={2 * done} or so"
        )
    tokens = state.recorder.totals.sampled_tokens
    if is_spent(config.run, tokens) and folder.summary.exists():
        raise ResumeError(
            f"{folder.path} is finished: {tokens} tokens of run.max_tokens={config.run.max_tokens}; go on with "
            f"run.max_tokens={2 * tokens} or so"
        )
    if is_stopped(config.run, state.recorder.totals.beyond(config.run.stop)) and folder.summary.exists():
        raise ResumeError(f"{folder.path} is finished: run.stop was reached; go on with run.stop=null or another rule")


def _check_evaluations(folder: RunFolder) -> None:
    """Raises ResumeError when the log of evaluations, which is to be taken back too, cannot be read."""
    try:
        read_metrics(folder.evaluations)
    except FileNotFoundError:
        pass  # a run may die before its first line
    except (OSError, ValueError) as error:
        raise ResumeError(f"{folder.evaluations} cannot be read ({error}): mend it or move it away") from error


def _check_metrics(folder: RunFolder, state: RunState) -> None:
    """Raises ResumeError when lines that were there at the checkpoint are not there any more."""
    recorded = state.recorder.metrics_bytes
    if recorded < 0:
        raise ResumeError(f"{folder.path}: the checkpoint's recorder.metrics_bytes is {recorded}: go on from another")
    if not folder.metrics.is_file():
        raise ResumeError(f"{folder.metrics} is missing ({recorded} bytes at the checkpoint): put it back")
    if folder.metrics.stat().st_size < recorded:
        raise ResumeError(f"{folder.metrics} is shorter than at the checkpoint ({recorded} bytes): put it back")


def _counts(ledger: Path) -> dict[str, int]:
    """State -> tickets, of a checkpoint's ledger, which is only read. Raises ResumeError when it is damaged."""
    try:
        open_file(ledger).close()  # SQLite waits for a pipe's other end, and cannot be interrupted
        # Quoted, as ? and % have a meaning there.
        with closing(sqlite3.connect(f"file:{quote(str(ledger))}?mode=ro", uri=True)) as db:
            db.execute("PRAGMA trusted_schema = OFF")
            (health,) = db.execute("PRAGMA quick_check").fetchone()
            if health != "ok":
                raise ResumeError(f"{ledger}: damaged: {health}")
            counts = dict(db.execute("SELECT state, COUNT(*) FROM tickets GROUP BY state"))
            if strange := [state for state in counts if state not in tuple(State)]:
                raise ResumeError(f"{ledger}: damaged: a ticket is {one_line(strange[0], 40)!r}")
            return counts
    except (OSError, sqlite3.Error) as error:
        raise ResumeError(f"{ledger}: damaged: {error}") from error


def _said(folder: RunFolder, checkpoint: Path, state: RunState, counts: Mapping[str, int]) -> tuple[str, ...]:
    ended = ", ".join(
        f"{n} {name}" for name, n in sorted(counts.items()) if name not in (State.IN_FLIGHT, State.QUEUED)
    )
    lost: list[str] = []
    with suppress(OSError, ValueError):
        last = max((line["update"] for line in read_metrics(folder.metrics)), default=state.update)
        if last > state.update:
            several = f"s {state.update + 1} to {last}" if last > state.update + 1 else f" {last}"
            lost.append(f"update{several}, done after the checkpoint,")
    with suppress(LedgerError), closing(Ledger(folder.ledger)) as ledger:
        issued = ledger.counts().issued - sum(counts.values())
        if issued > 0:
            lost.append(f"what became of {issued} tickets issued since")
    return (
        f"resuming {folder.path} from {checkpoint.name}, {state.recorder.elapsed_s:.0f} s into the run",
        f"restored: {state.update} updates, {sum(counts.values())} tickets ({ended or 'none ended'}), "
        f"{counts.get(State.QUEUED, 0)} groups queued",
        f"issued again: {counts.get(State.IN_FLIGHT, 0)} tickets that were in flight",
        f"lost: {' and '.join(lost) or 'nothing'}",
    )
