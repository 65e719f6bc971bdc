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
from tests.chaos.faults import Fault, Kind, schedule
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
    done = kept(arguments.json) if arguments.resume else []
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


def kept(path: Path) -> list[dict[str, Any]]:
    """What became of schedules before, as far as they would be drawn the same way today."""
    done = json.loads(path.read_text())["schedules"] if path.exists() else []
    return [one for one in done if "took_place" in one and one["faults"] == in_words(drawn(one["seed"]))]


def drawn(seed: int) -> list[Fault]:
    return schedule(seed, UPDATES, UPDATES * GROUPS, ACTORS, RANKS)


def in_words(faults: list[Fault]) -> list[str]:
    return [f"{fault.kind} at {fault.at}" for fault in faults]


def undergone(seed: int, policy: Path, root: Path) -> dict[str, Any]:
    """What became of one schedule; the folder of one that went well is removed."""
    faults, began = drawn(seed), time.monotonic()
    ordeal, said = Ordeal(faults, root / str(seed), policy), "ok"
    try:
        ordeal.go()
    except ChaosError as error:
        said = f"WRONG: {error}"
    recovered, lost, met = ordeal.recovered_s(), ordeal.actors_lost(), ordeal.met()
    if said == "ok":
        shutil.rmtree(ordeal.folder)
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "faults": in_words(faults),
        "took_place": sorted(met | ({Kind.POISON} & {fault.kind for fault in faults})),
        "said": said,
        "actors_lost": lost,
        "recovered_s": recovered,
    }


def figures_of(done: list[dict[str, Any]]) -> dict[str, Any]:
    """How many went wrong, how often each kind of fault took place, and how long recovery took.

    An actor that is not back before its run ends is in `actors_lost` and has no time.
    """
    by_victim = {who: [s for one in done for s in one["recovered_s"][who]] for who in RECOVERIES}
    return {
        "wrong": sum(one["said"] != "ok" for one in done),
        "faults": dict(Counter(kind for one in done for kind in one["took_place"])),
        "actors_lost": sum(one["actors_lost"] for one in done),
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
