"""What is there of a comparison already, and so what remains to be done: the same command may be given at any time."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from configs.load import ConfigError, load_config
from configs.problems import did_you_mean
from orchestration.comparison_plan import Judgement, Plan, PlannedRun, from_root
from orchestration.comparison_results import judged_by
from orchestration.comparison_run import Task
from orchestration.resume import different
from orchestration.run_folder import RunFolder, RunFolderError


class State(StrEnum):
    """What becomes of a planned run."""

    FINISHED = "finished: kept"
    RESUMED = "goes on from its checkpoint"
    AGAIN = "has no checkpoint: begins anew"
    NEW = "not begun"
    KNOWN = "known from an earlier document"


@dataclass(frozen=True, slots=True)
class Work:
    """What one call is to do. runs: those asked for, finished ones too. states: of all planned runs, by name."""

    runs: tuple[PlannedRun, ...]
    judgements: tuple[Judgement, ...]
    states: Mapping[str, State]
    tasks: tuple[Task, ...]


def work_of(plan: Plan, only: Collection[str], known: Collection[str] = ()) -> Work:
    """What remains of the methods named, of all where none is.

    known: runs that are not made, and their policies not judged. Raises ConfigError as `states_of`, and for an unknown
    method and one that starts from a policy this call will not make.
    """
    methods = list(dict.fromkeys(run.method for run in plan.runs))
    if wrong := [name for name in only if name not in methods]:
        near = did_you_mean(difflib.get_close_matches(wrong[0], methods, n=1))
        raise ConfigError([f"--only {wrong[0]}: no such method{near}"])
    states = states_of(plan)
    states |= {name: State.KNOWN for name in known if states[name] is not State.FINISHED}
    runs = tuple(run for run in plan.runs if not only or run.method in only)
    making = {run.name for run in runs if states[run.name] is not State.KNOWN}
    there = {name for name, state in states.items() if state is State.FINISHED} | making
    if lacking := [run for run in runs if run.name in making and run.after is not None and run.after not in there]:
        option = {run.name: "known" if run.after in known else "only" for run in lacking}
        raise ConfigError(
            [f"--{option[run.name]}: {run.name} starts from the policy of {run.after}: not there" for run in lacking]
        )
    judged = {None, *making}
    judgements = tuple(judgement for judgement in plan.judgements if judgement.after in judged)
    return Work(runs, judgements, states, tuple(_tasks(plan, runs, judgements, states)))


def states_of(plan: Plan) -> dict[str, State]:
    """The state of every planned run by name; nothing is changed.

    Raises ConfigError when a folder holds another run than the planned one, or is no run's folder.
    """
    problems: list[str] = []
    states: dict[str, State] = {}
    for run in plan.runs:
        folder = RunFolder(run.folder)
        try:
            states[run.name] = _state(folder)
        except (RunFolderError, OSError) as error:
            raise ConfigError([*problems, str(error)]) from None
        if states[run.name] in (State.FINISHED, State.RESUMED):
            problems += _other_run(run, folder)
        elif states[run.name] is State.AGAIN and not (folder.config.exists() or (folder.path / ".lock").exists()):
            problems.append(f"{from_root(run.folder)}: is no run's folder: move it away")
    problems += [problem for run in plan.runs for problem in _other_start(run, states)]
    if problems:
        raise ConfigError(problems)
    return states


def clear_the_way(work: Work) -> None:
    """Remove what is left of runs that begin anew, and the judgements of policies that are to change.

    Never a folder with a summary or a checkpoint. Raises ConfigError when another process works in one.
    """
    for run in work.runs:
        if work.states[run.name] is State.AGAIN:
            folder = RunFolder(run.folder)
            try:
                folder.lock()
            except RunFolderError as error:
                raise ConfigError([str(error)]) from None
            folder.discard()
    kept = (State.FINISHED, State.KNOWN)
    changed = {run.name for run in work.runs if work.states[run.name] not in kept}
    for judgement in work.judgements:
        if judgement.after in changed:
            judgement.output.unlink(missing_ok=True)


def _tasks(
    plan: Plan, runs: Collection[PlannedRun], judgements: Collection[Judgement], states: Mapping[str, State]
) -> Iterator[Task]:
    """Every run that is not finished, then every judgement that is not there, each with what it has to wait for."""
    to_run = [run for run in runs if states[run.name] not in (State.FINISHED, State.KNOWN)]
    coming = {run.name for run in to_run}
    for run in to_run:
        arguments = run.resume_arguments if states[run.name] is State.RESUMED else run.arguments
        yield Task(run.name, arguments, _if_in(coming, run.after), plan.folder / f"{run.name}.log")
    for judgement in judgements:
        needs = _if_in(coming, judgement.after)
        if needs or judged_by(judgement) is None:
            yield Task(judgement.name, judgement.arguments, needs, plan.folder / f"{judgement.name}.log")


def _if_in(names: Collection[str], name: str | None) -> tuple[str, ...]:
    return (name,) if name is not None and name in names else ()


def _state(folder: RunFolder) -> State:
    if not folder.path.exists():
        return State.NEW
    if folder.summary.exists():
        return State.FINISHED
    return State.RESUMED if folder.latest_checkpoint() is not None else State.AGAIN


def _other_run(run: PlannedRun, folder: RunFolder) -> list[str]:
    """In what the settings of the run that is there are not the planned ones."""
    # A folder may be moved; where the policy of another run lies moves with it.
    places = {"run.root"} if run.after is None else {"run.root", "model.path"}
    try:
        there = load_config(folder.config, ())
    except ConfigError as error:
        return [f"{problem}: move {from_root(run.folder)} away" for problem in error.problems]
    keys = [key for key in different(there, run.config) if key not in places]
    if not keys:
        return []
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return [f"{from_root(run.folder)} was made with another {keys[0]}{more}: move it away, or give another --root"]


def _other_start(run: PlannedRun, states: Mapping[str, State]) -> list[str]:
    """A run that is there cannot have begun from a policy that is still to be made."""
    if run.after is None or states[run.after] is State.FINISHED or states[run.name] in (State.NEW, State.AGAIN):
        return []
    return [f"{from_root(run.folder)} started from another policy than {run.after} will leave: move it away"]
