"""Methods x seeds at one budget of generated tokens: `python -m orchestration.compare --config configs/compare/X.yaml`.

Each run is an orchestration/run.py of its own in runs/compare/X/METHOD-seed-S. What is finished is kept, so the same
command goes on where it was interrupted. Leaves comparison.json, comparison.md and pictures in runs/compare/X.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.comparison import ComparisonConfig, load_comparison
from configs.environments import EnvSettings
from configs.load import ConfigError
from configs.shown import redacted
from learner.durable import replace_durably
from orchestration.comparison_plan import DEFAULT_ROOT, Plan, from_root, make_plan
from orchestration.comparison_run import Launcher, LaunchError, LocalLauncher, command, run_tasks
from orchestration.exits import BAD_INPUT, FAILED, INTERRUPTED, fail

if TYPE_CHECKING:
    from orchestration.comparison_known import Known
    from orchestration.comparison_state import Work


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input and nothing was started, 1 something failed, 130 interrupted."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.report and arguments.dry_run:
        parser.error("--report runs nothing anyway: leave --dry-run out")
    failed: dict[str, str] = {}
    try:
        comparison = load_comparison(arguments.config)
        written = arguments.root.absolute() if arguments.address else from_root(arguments.root)
        plan = make_plan(comparison, arguments.config, arguments.root, written)
        # Commands as they are for everybody, wherever these runs lie.
        shown = make_plan(comparison, arguments.config, DEFAULT_ROOT, DEFAULT_ROOT)
        known = _known(arguments.known, shown)
        if not arguments.report:
            failed = _run(plan, arguments, known)
        if arguments.dry_run:
            return 0
        files = _write(comparison, plan, shown, arguments.config, arguments.output, failed, known)
    except ConfigError as error:
        return fail(error, FAILED if failed else BAD_INPUT)
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else error, FAILED)
    except KeyboardInterrupt:
        return fail("interrupted: the same command goes on from here", INTERRUPTED)
    _say(f"written: {', '.join(str(from_root(file)) for file in files)}")
    return FAILED if failed else 0


def _known(path: Path | None, shown: Plan) -> Known | None:
    """Raises ConfigError."""
    if path is None:
        return None
    from orchestration.comparison_known import read_known

    return read_known(path, shown)


def _run(plan: Plan, arguments: argparse.Namespace, known: Known | None) -> dict[str, str]:
    """Do what remains to be done, or only tell it; name of a task -> why it failed. Raises ConfigError."""
    # Imports that take time: a mistyped key was reported before.
    from orchestration.comparison_state import clear_the_way, work_of

    _check(plan)
    work = work_of(plan, arguments.only, () if known is None else known.results)
    _tell(work, arguments.dry_run)
    if arguments.dry_run or not work.tasks:
        return {}
    launcher = LocalLauncher() if arguments.address is None else _job_launcher(arguments.address)
    plan.folder.mkdir(parents=True, exist_ok=True)
    clear_the_way(work)
    _hear_signals()
    return run_tasks(work.tasks, launcher, arguments.jobs, _say)


def _hear_signals() -> None:
    """A scheduler's SIGTERM and a closed terminal's SIGHUP are Ctrl-C to us: what was started is stopped before we end.

    A shell starts what it puts into the background deaf to SIGINT; with a handler here the processes we start can hear
    it. Who is deaf to SIGHUP, as under nohup, wants to outlive the terminal.
    """
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    for number in (signal.SIGTERM, signal.SIGINT, *(() if deaf else (signal.SIGHUP,))):
        signal.signal(number, signal.default_int_handler)


def _check(plan: Plan) -> None:
    """Raises ConfigError with all that a run or the judge would refuse when it starts."""
    from envs.base import BadEnvironment
    from envs.registry import check_env
    from orchestration.metrics import metric_problems
    from orchestration.trackers import tracker_problems

    problems = [
        f"methods.{run.method}: {problem}"
        for run in plan.runs
        for problem in metric_problems(run.config) + tracker_problems(run.config)
    ]
    places: dict[EnvSettings, str] = {}
    for run in plan.runs:
        places.setdefault(run.config.env, f"methods.{run.method}")
    for judgement in plan.judgements:
        places.setdefault(judgement.config.env, "evaluate")
    for settings, place in places.items():
        try:
            check_env(settings)
        except BadEnvironment as error:
            problems += [f"{place}: {line}" for line in str(error).splitlines()]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))  # the same for every seed


def _tell(work: Work, with_commands: bool) -> None:
    for run in work.runs:
        _say(f"{run.name}: {work.states[run.name].value}")
    for task in work.tasks if with_commands else ():
        print(f"{command(task.arguments)}{'  # after ' + ', '.join(task.needs) if task.needs else ''}")
    _say(f"{len(work.tasks)} to run")


def _job_launcher(address: str) -> Launcher:
    """Raises ConfigError when Ray does not answer there."""
    from orchestration.comparison_jobs import JobLauncher

    try:
        return JobLauncher(address)
    except LaunchError as error:
        raise ConfigError([str(error)]) from None


def _write(
    comparison: ComparisonConfig,
    plan: Plan,
    shown: Plan,
    path: Path,
    output: Path | None,
    failed: Mapping[str, str],
    known: Known | None,
) -> list[Path]:
    """Document, tables and pictures, in the comparison's folder, with a page, and beside `output`.

    Raises ConfigError.
    """
    from orchestration.comparison_aggregate import as_text, document
    from orchestration.comparison_page import comparison_page
    from orchestration.comparison_plots import write_plots
    from orchestration.comparison_results import ResultError, read_results
    from orchestration.comparison_table import markdown

    try:
        results, start = read_results(plan)
    except ResultError as error:
        raise ConfigError([str(error)]) from None
    if not results and known is None:
        raise ConfigError([f"{from_root(plan.folder)}: no run is finished, so there is nothing to compare"])
    compared = document(comparison, path, plan, shown, results, start, failed, known)
    files = []
    for stem in [plan.folder / "comparison", *([output.with_suffix("")] if output is not None else [])]:
        stem.parent.mkdir(parents=True, exist_ok=True)
        plots = write_plots(compared, stem)
        tables, numbers = stem.with_name(f"{stem.name}.md"), stem.with_name(f"{stem.name}.json")
        replace_durably(tables, markdown(compared, [plot.name for plot in plots]).encode())
        replace_durably(numbers, as_text(compared).encode())
        files += [numbers, tables, *plots]
        if stem.parent == plan.folder:  # not beside --output, where documents are kept
            files.append(stem.with_name(f"{stem.name}.html"))
            replace_durably(files[-1], comparison_page(compared, plots).encode())
    print(markdown(compared, ()))
    return files


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {redacted(text)}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="orchestration.compare", description="Compare methods at equal tokens.")
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the comparison")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="folder of comparisons, runs/compare")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--only", action="append", default=[], metavar="METHOD", help="run these methods alone")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="runs at once, 1")
    parser.add_argument("--address", help="run as jobs of the Ray cluster with this dashboard, http://HEAD:8265")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print the commands")
    what.add_argument("--report", action="store_true", help="run nothing, compare what is there")
    parser.add_argument(
        "--known", type=Path, metavar="FILE.json", help="take finished runs of this earlier document over"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the comparison there too")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
