"""Entry point: `python -m tests.chaos [--schedules 100] [--seed 0]`: random faults in small runs, one after another."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from configs.schema import RunConfig
from orchestration.cluster import ROOT
from orchestration.policy import ensure_policy
from tests.chaos.faults import schedule
from tests.chaos.harness import ACTORS, GROUPS, RANKS, RECOVERIES, UPDATES, ChaosError, Ordeal

WARMUP = {"layers": 2, "hidden": 64, "heads": 2, "demonstrations": 600}
RESULTS = ROOT / "docs" / "results" / "chaos.json"


def main() -> int:
    """Exit status 1 where any run lost or doubled a ticket; its folder is kept then.

    The results are written after every schedule, and --resume goes on behind those that are there.
    """
    arguments = _parser().parse_args()
    policy = ensure_policy(RunConfig.model_validate({"model": {"warmup": WARMUP}}), print)
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    done = json.loads(arguments.json.read_text())["schedules"] if arguments.resume and arguments.json.exists() else []
    for seed in range(arguments.seed, arguments.seed + arguments.schedules):
        if seed not in [one["seed"] for one in done]:
            done.append(undergone(seed, policy, root))
            print(json.dumps(done[-1]), flush=True)
            arguments.json.write_text(json.dumps(figures_of(done), indent=1) + "\n", encoding="utf-8")
    figures = figures_of(done)
    said = ", ".join(f"{who} {one}" for who, one in figures["recovered_s"].items() if one["times"])
    print(
        f"{len(done)} schedules, {figures['wrong']} of them wrong; seconds to recover: {said or '-'}; folders: {root}"
    )
    return int(figures["wrong"] > 0)


def undergone(seed: int, policy: Path, root: Path) -> dict[str, Any]:
    """What became of one schedule; the folder of one that went well is removed."""
    faults, began = schedule(seed, UPDATES, UPDATES * GROUPS, ACTORS, RANKS), time.monotonic()
    ordeal, said = Ordeal(faults, root / str(seed), policy), "ok"
    try:
        ordeal.go()
    except ChaosError as error:
        said = f"WRONG: {error}"
    recovered = ordeal.recovered_s()
    if said == "ok":
        shutil.rmtree(ordeal.folder)
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "faults": [f"{fault.kind} at {fault.at}" for fault in faults],
        "said": said,
        "recovered_s": recovered,
    }


def figures_of(done: list[dict[str, Any]]) -> dict[str, Any]:
    """How many went wrong, how often each kind of fault was met, and how long recovery took."""
    by_victim = {who: [s for one in done for s in one["recovered_s"][who]] for who in RECOVERIES}
    return {
        "wrong": sum(one["said"] != "ok" for one in done),
        "faults": dict(Counter(fault.rsplit(" at ", 1)[0] for one in done for fault in one["faults"])),
        "recovered_s": {
            who: {"times": len(s), "median": median(s) if s else None, "most": max(s, default=None)}
            for who, s in by_victim.items()
        },
        "schedules": done,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.chaos")
    parser.add_argument("--schedules", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures are kept")
    parser.add_argument("--resume", action="store_true", help="go on behind the schedules that are in that file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
