"""Judge policies on held-out episodes: `python -m orchestration.evaluate --config configs/quickstart.yaml`.

Any checkpoint in Hugging Face format, or the folder of a run, which stands for the policy it left:
`python -m orchestration.evaluate --config configs/NAME.yaml --policy runs/mine OWNER/NAME --mode guided key=value ...`
No learner is started. docs/evaluation.md says what the figures are.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console as Terminal

from configs.load import ConfigError, load_config
from configs.schema import RunConfig
from configs.shown import redacted
from orchestration.exits import BAD_INPUT, FAILED, INTERRUPTED, fail
from orchestration.plans import Mode, Plan, plan_of

if TYPE_CHECKING:
    from orchestration.judging import JudgedPolicy


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input, 1 the evaluation failed, 130 interrupted. An error is one line."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_intermixed_args(given)
    texts = arguments.policy or []
    # `--policy A B key=value`: what can only be a setting is one.
    policies = [text for text in texts if "=" not in text or Path(text).exists()]
    overrides = [*(text for text in texts if text not in policies), *arguments.overrides]
    try:
        config = load_config(arguments.config, overrides)
        if arguments.samples < 1:
            raise ConfigError([f"--samples {arguments.samples}: at least one sample is needed"])
        output = _output(arguments.output, config, arguments.config.stem, arguments.mode)
    except ConfigError as error:
        return fail(error, BAD_INPUT)
    command = redacted(shlex.join(["python", "-m", "orchestration.evaluate", *given]))
    return _judge(config, policies, arguments.mode, arguments.samples, output, command)


def _judge(config: RunConfig, policies: Sequence[str], mode: Mode, samples: int, output: Path, command: str) -> int:
    plan = plan_of(mode, config.sampler, samples)
    judged: list[JudgedPolicy] = []
    status = _judge_all(config, policies, plan, judged)
    if not judged:
        return status
    from orchestration.judgement_output import document, show, write

    # Whatever ended the evaluation early, the policies before that are judged; the table is there if the disk is full.
    terminal = Terminal(highlight=False)
    show(terminal, config, mode, plan, judged)
    try:
        write(output, document(config, command, mode, plan, judged))
    except OSError as error:
        return fail(f"--output {output}: {error.strerror or error}", FAILED)
    terminal.print(f"figures: {output}", markup=False, soft_wrap=True)
    return status


def _judge_all(config: RunConfig, policies: Sequence[str], plan: Plan, judged: list[JudgedPolicy]) -> int:
    """Exit status; each policy is put into `judged` when it is done."""
    # As of a run: see orchestration/run.py.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # From here on imports take time: a mistyped key was reported before.
    from envs.base import BadEnvironment
    from envs.registry import check_env
    from orchestration.cluster import cause_of
    from orchestration.judging import judge_policies, named_policies, without_ranks
    from orchestration.session import RUN_ERRORS, START_ERRORS

    try:
        check_env(config.env)
        alone = without_ranks(config)
        for one in judge_policies(alone, named_policies(alone, policies), plan):
            judged.append(one)
    except (BadEnvironment, *START_ERRORS) as error:
        return fail(error, BAD_INPUT)
    except RUN_ERRORS as error:
        return fail(cause_of(error), FAILED)
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    return 0


def _output(given: Path | None, config: RunConfig, name: str, mode: Mode) -> Path:
    """Where the figures go; the folder is made now. Raises ConfigError when it cannot be."""
    default = f"{name}-{mode}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path = given or Path(config.run.root).expanduser() / "evaluations" / default
    if path.is_dir():
        raise ConfigError([f"--output {path} is a folder: name a file"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"--output {path}: {path.parent} cannot be made: {error.strerror}"]) from None
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m orchestration.evaluate", description="Judge policies on held-out episodes."
    )
    add: Any = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file: environment, engines, sampler")
    add(
        "--policy", nargs="+", action="extend", metavar="POLICY",
        help="folders or hub ids of Hugging Face models, or folders of runs; default: the config's own policy",
    )  # fmt: skip
    add("--mode", choices=get_args(Mode), default="plain", help="plain prompt (default), guided by sketches, or lists")
    add("--samples", type=int, default=64, help="samples of an episode (default 64)")
    add("--output", type=Path, metavar="FILE", help="JSON file of the figures; default: evaluations/ beside the runs")
    add("overrides", nargs="*", metavar="key=value", help="settings by dotted path, e.g. eval.episodes=64")
    return parser


if __name__ == "__main__":
    sys.exit(main())
