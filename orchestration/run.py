"""Entry point: `python orchestration/run.py --config configs/quickstart.yaml [rollout.actors=4 ...]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Run as a script, the folder of this file is on the path instead of the project's.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from configs.load import ConfigError, load_config, to_yaml  # noqa: E402
from configs.schema import RunConfig  # noqa: E402

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input, 1 the run failed, 130 interrupted. An error is a line that names its cause."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.resume is not None:
            raise ConfigError(
                ["--resume: not available yet; a new run goes on from an old policy with model.path=RUN/policy"]
            )
        if arguments.config is None:
            raise ConfigError(["--config is missing: name a YAML file, for instance configs/quickstart.yaml"])
        config = load_config(arguments.config, arguments.overrides)
    except ConfigError as error:
        return _fail(error, BAD_INPUT)
    # From here on imports take time: a mistyped key was reported before.
    from envs.base import BadEnvironment
    from envs.registry import check_env

    try:
        check_env(config.env)
    except BadEnvironment as error:
        return _fail(error, BAD_INPUT)
    if arguments.dry_run:
        return _dry_run(config)
    return _train(config, arguments.config.stem)


def _dry_run(config: RunConfig) -> int:
    from orchestration.cluster import placement_plan

    print(to_yaml(config))
    print("\n".join(f"# {line}" for line in placement_plan(config)))
    return 0


def _train(config: RunConfig, config_name: str) -> int:
    # How long threads of a parallel loop spin while they wait for each other: by default so long that on a busy machine
    # the warm-up is many times slower, and not at all costs a quarter on a quiet one. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from orchestration.cluster import cause_of
    from orchestration.session import RUN_ERRORS, START_ERRORS, run_session

    try:
        run_session(config, config_name)
    except START_ERRORS as error:
        return _fail(error, BAD_INPUT)
    except RUN_ERRORS as error:
        return _fail(cause_of(error), FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    return 0


def _fail(error: object, status: int) -> int:
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orchestration/run.py", description="Train a policy by structured exploration."
    )
    parser.add_argument("--config", type=Path, help="YAML file of the run")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the config, print it resolved and the placement plan"
    )
    parser.add_argument("--resume", metavar="RUN", help="run folder to go on from (not available yet)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings by dotted path, e.g. rollout.actors=8"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
