"""Entry point: `python orchestration/run.py --config configs/quickstart.yaml [rollout.actors=4 ...]`.

`python orchestration/run.py --resume runs/NAME [run.updates=80 ...]` goes on with a run that has a checkpoint.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# Run as a script, the folder of this file is on the path instead of the project's.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from configs.load import ConfigError, load_config, to_yaml  # noqa: E402
from configs.schema import RunConfig  # noqa: E402
from orchestration.exits import BAD_INPUT, FAILED, INTERRUPTED, fail  # noqa: E402

if TYPE_CHECKING:
    from orchestration.resume import ResumePoint


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input, 1 the run failed, 130 interrupted. An error is a line that names its cause."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.resume is not None:
            return _resume(arguments.resume, arguments)
        if arguments.config is None:
            raise ConfigError(["--config is missing: name a YAML file, for instance configs/quickstart.yaml"])
        config = load_config(arguments.config, arguments.overrides)
        _check_observers(config)
    except ConfigError as error:
        return fail(error, BAD_INPUT)
    # From here on imports take time: a mistyped key was reported before.
    from envs.base import BadEnvironment
    from envs.registry import check_env

    try:
        check_env(config.env)
    except BadEnvironment as error:
        return fail(error, BAD_INPUT)
    if arguments.dry_run:
        return _dry_run(config)
    return _train(config, arguments.config.stem)


def _resume(run: Path, arguments: argparse.Namespace) -> int:
    """Raises ConfigError."""
    from orchestration.checkpoints import CheckpointError
    from orchestration.resume import ResumeError, resume_point
    from orchestration.run_folder import RunFolderError

    try:
        point = resume_point(run, arguments.overrides, arguments.config)
    except (ResumeError, RunFolderError, CheckpointError) as error:
        return fail(error, BAD_INPUT)
    _check_observers(point.config)
    if arguments.dry_run:
        return _dry_run(point.config)
    return _train(point.config, point.folder.path.name, point)


def _check_observers(config: RunConfig) -> None:
    """Raises ConfigError when checkpoint.best_by or run.stop.metric names no metric, or a tracker is not installed."""
    from orchestration.metrics import metric_problems
    from orchestration.trackers import tracker_problems

    _refuse(metric_problems(config) + tracker_problems(config))


def _dry_run(config: RunConfig) -> int:
    from orchestration.dry_run import placement_lines
    from orchestration.memory_table import memory_problems, memory_table
    from orchestration.room import ClusterError

    print(to_yaml(config))
    try:
        lines = [*placement_lines(config), *memory_table(config)]
        print("\n".join(f"# {line}" for line in lines))
        _refuse(memory_problems(config))
    except (ClusterError, ConfigError) as error:
        return fail(error, BAD_INPUT)
    return 0


def _check_start(config: RunConfig) -> None:
    """Raises ConfigError for what cannot run, before anything is started."""
    from orchestration.memory_table import memory_problems, not_checked
    from orchestration.shapes import look_up

    if config.rollout.tensor_parallel > 1 or config.cluster.gpu_memory_gib is not None:
        look_up(config)
    _refuse(memory_problems(config))
    for line in not_checked(config):
        print(f"warning: {line}")
    # Processes on GPUs would say so one by one, and minutes later.
    _refuse(_without_nccl(config))


def _without_nccl(config: RunConfig) -> list[str]:
    if config.deepspeed.gpus_per_rank == 0:
        return []
    from torch.distributed import is_nccl_available

    if is_nccl_available():
        return []
    return [
        f"deepspeed.gpus_per_rank ({config.deepspeed.gpus_per_rank:g}): the installed torch has no NCCL; GPUs need the "
        "CUDA lock: FLAVOUR=cuda bash requirements/setup.sh"
    ]


def _refuse(problems: Sequence[str]) -> None:
    """Raises ConfigError where there are any."""
    if problems:
        raise ConfigError(problems)


def _train(config: RunConfig, config_name: str, resume: ResumePoint | None = None) -> int:
    # How long threads of a parallel loop spin while they wait for each other: by default so long that on a busy machine
    # the warm-up is many times slower, and not at all costs a quarter on a quiet one. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        _check_start(config)
    except ConfigError as error:
        return fail(error, BAD_INPUT)
    from orchestration.cluster import cause_of
    from orchestration.interrupt import Interrupted
    from orchestration.session import RUN_ERRORS, START_ERRORS, run_session

    try:
        run_session(config, config_name, resume)
    except START_ERRORS as error:
        return fail(error, BAD_INPUT)
    except RUN_ERRORS as error:
        return fail(cause_of(error), FAILED)
    except Interrupted as error:
        return fail(error, INTERRUPTED)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return fail("interrupted", INTERRUPTED)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orchestration/run.py", description="Train a policy by structured exploration."
    )
    parser.add_argument("--config", type=Path, help="YAML file of the run")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the config, print it resolved with the placement plan and memory"
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="folder of a run to go on with, from its checkpoint")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings by dotted path, e.g. rollout.actors=8"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
