"""`make bench`: what a change must not make worse, as ratios within one run. One part at a time, nothing beside it.

    make bench ARGS="--only broadcast --rounds 3"
    make bench ARGS="--only learner,rollout --json figures.json"

Parts that are not run keep their figures in the JSON file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestration.cluster import ROOT

PARTS = ("learner", "rollout", "exploration", "env_workers", "broadcast", "messages", "end_to_end", "idle")
WHERE_THERE_IS_ONE = ("gpu",)
RESULTS = ROOT / "docs" / "results" / "bench.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by comma: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="of each comparison; figures are medians over them")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures are kept")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if unknown := set(parts) - {*PARTS, *WHERE_THERE_IS_ONE}:
        parser.error(f"--only: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS + WHERE_THERE_IS_ONE)}")
    for part in parts:
        began = time.monotonic()
        figures = importlib.import_module(f"tests.bench.{part}").measure(arguments.rounds)
        print(f"{part} ({time.monotonic() - began:.0f} s)")
        keep(arguments.json, part, figures | {"rounds": arguments.rounds})  # first: they may have taken hours
        show(figures, "  ")


def show(figures: dict[str, Any], indent: str) -> None:
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{indent}{name}", flush=True)
            show(value, indent + "  ")
        else:
            told = f"{value:,}" if isinstance(value, int | float) else str(value)
            print(f"{indent}{name:{40 - len(indent)}} {told:>14}", flush=True)


def keep(path: Path, part: str, figures: dict[str, Any]) -> None:
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = {name: value for name, value in kept.items() if name in PARTS + WHERE_THERE_IS_ONE}
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "torch": version("torch")}
    kept[part] = figures | {"machine": machine}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(kept.items())), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
