"""Entry point: `python -m orchestration.scale runs/NAME actors=N` while the run is going on."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from configs.load import ConfigError, load_config
from configs.sharing import need_whole_gpus
from learner.durable import replace_durably
from orchestration.elastic import MOST_ACTORS, State, read_state
from orchestration.exits import BAD_INPUT, FAILED, INTERRUPTED, fail
from orchestration.run_folder import RunFolder, RunFolderError

LOOK_S = 0.5


class ScaleError(ValueError):
    """What was asked for makes no sense; says what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 there are as many as asked for, 2 bad input, 1 not in time, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        wanted = _wanted(arguments.what)
        _check_running(arguments.run)
        _check_free(arguments.run, wanted)
        replace_durably(arguments.run / "scale.json", json.dumps({"actors": wanted}).encode())
        return _follow(arguments.run, wanted, arguments.wait)
    except (ScaleError, RunFolderError, ConfigError, OSError) as error:
        return fail(error, BAD_INPUT)
    except KeyboardInterrupt:
        return fail("interrupted: the run goes on and does what it was asked", INTERRUPTED)


def _wanted(what: str) -> int:
    """Raises ScaleError."""
    found = re.fullmatch(r"actors=(\d{1,9})", what)
    if found is None:
        raise ScaleError(f"{what}: say actors=N, such as actors=4")
    if not 1 <= (wanted := int(found[1])) <= MOST_ACTORS:
        raise ScaleError(f"{what}: must be between 1 and {MOST_ACTORS}")
    return wanted


def _check_running(run: Path) -> None:
    """Raises ScaleError where no process works on the run."""
    if not (run / "config.yaml").is_file():
        raise ScaleError(f"{run} is no folder of a run that has begun to train")
    folder = RunFolder(run)
    try:
        folder.lock()
    except RunFolderError:
        return  # somebody holds it: the run
    folder.release()
    raise ScaleError(f"{run} is not running: set rollout.actors, with --resume where it is to go on")


def _check_free(run: Path, wanted: int) -> None:
    """Raises ScaleError where engines cannot be so many on the run's GPUs; ConfigError for a file that is none."""
    config = load_config(run / "config.yaml", [])
    if config.shares_gpus:
        raise ScaleError(
            f"{run}: every learner rank shares its GPU with an engine (cluster.colocated): set rollout.actors and "
            "deepspeed.ranks, with --resume"
        )
    if need_whole_gpus(config, wanted):
        raise ScaleError(
            f"{run}: actors={wanted} with rollout.gpus_per_actor ({config.rollout.gpus_per_actor:g}): no two "
            "engines can be on one GPU: set rollout.gpus_per_actor=1, with --resume"
        )


def _follow(run: Path, wanted: int, wait_s: float) -> int:
    """Tell how it goes until it is done."""
    until, said = time.monotonic() + wait_s, ""
    while True:
        state = read_state(run)
        if state is not None and (line := _in_words(state)) != said:
            said = line
            print(line, flush=True)
        if state is not None and state.wanted == wanted == state.up and not state.phases["leaving"]:
            return 0
        if time.monotonic() > until:
            return fail(
                f"not done within {wait_s:g} s (--wait); the run goes on with it: {said or 'no word yet'}", FAILED
            )
        time.sleep(LOOK_S)


def _in_words(state: State) -> str:
    phases = ", ".join(
        f"{len(numbers)} {phase}" for phase, numbers in state.phases.items() if numbers and phase != "gone"
    )
    return f"rollout actors: {state.wanted} wanted, {phases or 'none there'}{f'; {state.told}' if state.told else ''}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="orchestration.scale", description="Change a running run's rollout actors.")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("what", metavar="actors=N")
    parser.add_argument("--wait", type=float, default=300.0, metavar="SECONDS", help="for it to be done, 300")
    return parser


if __name__ == "__main__":
    sys.exit(main())
