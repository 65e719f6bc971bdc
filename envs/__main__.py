"""`python -m envs NAME --episodes 1000 [key=value ...]`: ceiling, floor and looks of an environment."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.environments import EnvSettings
from configs.load import ConfigError, load_config
from envs.base import BadEnvironment
from envs.registry import ENTRIES, make_env
from envs.survey import report, survey


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input; an error is a line that names its cause."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        settings = _settings(arguments.name, arguments.overrides)
        found = survey(make_env(settings), arguments.episodes, arguments.first_seed)
    except (ConfigError, BadEnvironment) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    print(report(settings.name, found))
    return 0


def _settings(name: str, overrides: Sequence[str]) -> EnvSettings:
    """Those of a run's YAML file, or an environment's defaults; `key=value` is short for `env.key=value`."""
    dotted = [override if override.startswith("env.") else f"env.{override}" for override in overrides]
    if name in ENTRIES:
        return load_config(None, [f"env.name={name}", *dotted]).env
    if name.endswith(".yaml"):
        return load_config(Path(name), dotted).env
    raise ConfigError([f"{name}: no environment of this name; there are {', '.join(ENTRIES)}, or name a YAML file"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m envs", description="The best and the worst that can be expected of an environment."
    )
    parser.add_argument("name", help=f"{', '.join(ENTRIES)}, or the YAML file of a run")
    parser.add_argument("--episodes", type=_positive, default=1000)
    parser.add_argument(
        "--first-seed", type=_whole, default=0, help="episodes are those of this seed and the next ones"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the environment, such as size=5")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def _whole(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{number} is not 0 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
