"""`make bench-scale`: what a ticket costs driver and queue with 1 to 1,024 actors whose engines are simulated.

    make bench-scale ARGS="--tickets 10000 --actors 16,1024"
    make bench-scale ARGS="--load load.yaml tokens_median=4000 tickets_per_s=64"

Dispatcher, fleet, ledger, recorder, replay queue, outbox and messages are those of a run, and so is every call between
processes but those of the engines. Points that are not run keep their figures in the JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from configs.load import ConfigError
from orchestration.cluster import ROOT
from orchestration.exits import BAD_INPUT, FAILED, fail
from tests.bench.rounds import rounded
from tests.bench.scale.figures import Point
from tests.bench.scale.load import Load, load_from
from tests.bench.scale.point import measure
from tests.bench.scale.weights import Link, table

ACTORS = (1, 16, 128, 1024)
FEW, MANY, MOST_RATIO = 16, 1024, 1.5  # the goal: a ticket's cost with MANY actors over that with FEW
COSTS = ("cost_us", "driver_us_per_ticket", "queue_us_per_ticket")
LINK, BUCKET_BYTES = Link(bytes_per_s=12.5e9, latency_s=20e-6), 16 << 20
RESULTS = ROOT / "docs" / "results" / "scale.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 where the ledger does not balance or the goal is missed, 2 for bad input."""
    arguments = _parser().parse_args(argv)
    tickets = [] if arguments.tickets is None else [f"tickets={arguments.tickets}"]
    try:
        load = load_from(arguments.load, [*arguments.overrides, *tickets])
    except ConfigError as error:
        return fail(error, BAD_INPUT)
    known = _kept(arguments.json, load)
    for actors in arguments.actors:
        began = time.monotonic()
        point = _measured(actors, load)
        known[str(actors)] = {k: _short(v) for k, v in asdict(point).items()} | {"cost_us": rounded(point.cost_us)}
        print(f"{_line(point)}  ({time.monotonic() - began:.0f} s)", flush=True)
        _keep(arguments.json, load, known)
        if not point.ledger_balanced:
            return fail(f"{actors} actors: the ledger does not balance", FAILED)
    return judge(known)


def _measured(actors: int, load: Load) -> Point:
    """In a process of its own: no point finds the memory of another one."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, actors, load).result()


def ratios_of(known: dict[str, Any]) -> dict[str, float]:
    """A ticket's cost with many actors over that with few: in all, and of each process. Empty without both points."""
    if str(FEW) not in known or str(MANY) not in known:
        return {}
    few, many = known[str(FEW)], known[str(MANY)]
    return {name: rounded(many[name] / few[name]) for name in COSTS}


def judge(known: dict[str, Any]) -> int:
    """Say whether the goal is reached; the exit status."""
    ratios = ratios_of(known)
    if not ratios:
        return 0
    cost, driver, queue = (ratios[name] for name in COSTS)
    print(
        f"cost of a ticket, {MANY} actors over {FEW}: {cost:.2f}, goal at most {MOST_RATIO} "
        f"(driver {driver:.2f}, queue {queue:.2f})"
    )
    return FAILED if cost > MOST_RATIO else 0


def _line(point: Point) -> str:
    idle = [f"{name} {share:.2f}" for name, share in (("actors", point.actor_idle_share),
            ("learner", point.learner_idle_share)) if share is not None]  # fmt: skip
    return (
        f"{point.actors:5} actors  {point.tickets_per_s:5.0f} tickets/s  driver {point.driver_us_per_ticket:5.0f} us  "
        f"queue {point.queue_us_per_ticket:5.0f} us  queued {point.queue_groups_mean:5.0f}  stale {point.stale}  "
        f"idle: {', '.join(idle) or 'too short a run'}"
    )


def _kept(path: Path, load: Load) -> dict[str, Any]:
    """The points of an earlier run under the same load."""
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    return dict(before["points"]) if before["load"] == load.model_dump() else {}


def _keep(path: Path, load: Load, known: dict[str, Any]) -> None:
    figures = {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "load": load.model_dump(),
        "goal_cost_ratio_at_most": MOST_RATIO,
        "ratios": ratios_of(known),
        "points": {key: known[key] for key in sorted(known, key=int)},
        "broadcast_model": {
            "link": asdict(LINK), "bucket_bytes": BUCKET_BYTES,
            "seconds": {case: {way: rounded(s) for way, s in ways.items()}
                        for case, ways in table(LINK, BUCKET_BYTES).items()},
        },
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _short(value: Any) -> Any:
    return rounded(value) if isinstance(value, float) else value


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text}: give whole numbers from 1 on by comma, such as 16,1024")
    return [int(part) for part in parts]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench-scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--actors", type=_counts, default=list(ACTORS), help="numbers of actors, by comma")
    parser.add_argument("--tickets", help="trained for each number of actors, 100,000")
    parser.add_argument("--load", type=Path, help="YAML file with settings of tests/bench/scale/load.py")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures are kept")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, put in last")
    return parser


if __name__ == "__main__":
    sys.exit(main())
