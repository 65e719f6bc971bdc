"""Entry point: `python -m tests.chaos [--schedules 100] [--seed 0]`: random faults in small runs, one after another."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from configs.schema import RunConfig
from orchestration.policy import ensure_policy
from tests.chaos.faults import schedule
from tests.chaos.harness import ACTORS, GROUPS, RANKS, UPDATES, ChaosError, Ordeal

WARMUP = {"layers": 2, "hidden": 64, "heads": 2, "demonstrations": 600}


def main() -> int:
    """Exit status 1 where any run lost or doubled a ticket; its folder is kept then."""
    arguments = _parser().parse_args()
    policy = ensure_policy(RunConfig.model_validate({"model": {"warmup": WARMUP}}), print)
    root, wrong = Path(tempfile.mkdtemp(prefix="chaos-")), 0
    for seed in range(arguments.seed, arguments.seed + arguments.schedules):
        faults, began = schedule(seed, UPDATES, UPDATES * GROUPS, ACTORS, RANKS), time.monotonic()
        ordeal = Ordeal(faults, root / str(seed), policy)
        try:
            ordeal.go()
            said = "ok"
            shutil.rmtree(ordeal.folder)
        except ChaosError as error:
            wrong += 1
            said = f"WRONG: {error}"
        kinds = ", ".join(f"{fault.kind} at {fault.at}" for fault in faults)
        print(json.dumps({"seed": seed, "seconds": round(time.monotonic() - began, 1), "faults": kinds, "said": said}))
        sys.stdout.flush()
    print(f"{arguments.schedules} schedules, {wrong} of them wrong{f', in {root}' if wrong else ''}")
    return int(wrong > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.chaos")
    parser.add_argument("--schedules", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    return parser


if __name__ == "__main__":
    sys.exit(main())
