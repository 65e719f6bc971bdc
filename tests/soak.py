"""Entry point: `make soak` (`python -m tests.soak [--hours 2]`): does anything grow in a run that goes on for long?

Memory and open files of each kind of process, and the files of the run's and of Ray's folder, read every few seconds.
`ray` is all of Ray's own processes; the object store's shared memory is counted there, as far as it was ever touched.
The slope is a straight line's over the last three quarters, when caches are full.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from orchestration.cluster import ROOT
from tests.chaos.harness import end_with_children

# What a process's command line holds; Ray writes the name of the class into it.
KINDS = {"ray::RolloutActor": "actors", "ray::LearnerRank": "learner", "ray::ReplayQueue": "queue",
         "envs.worker": "environments"}  # fmt: skip
NAMES = ("driver", *KINDS.values(), "ray")
EVERY_S = 30.0
CHECKPOINTS = 2
# A growth nobody would call one: less than this share of the level in an hour.
FLAT_SHARE_AN_HOUR = 0.02
MORE_FILES = 20  # open at the end than after the first quarter: connections of the moment come and go
RESULTS = ROOT / "docs" / "results" / "soak.json"


def main() -> int:
    """Exit status 1 where memory, open files or checkpoints grow, or the run ends before its time."""
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as root:
        readings = watch(Path(root), arguments.hours * 3600, arguments.overrides)
    if readings is None:
        return 1
    figures = figures_of(readings)
    arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    plot(figures, arguments.json.with_suffix(".svg"))
    for kind, one in figures["kinds"].items():
        print(
            f"{kind:14} {one['level_mib']:8.0f} MiB {one['slope_mib_an_hour']:+8.1f} MiB/h  files {one['files_last']}"
        )
    grown = what_grew(figures)
    print(f"grown: {', '.join(grown) or 'nothing'}; {figures['updates']} updates in {figures['hours']:.2f} h")
    return int(bool(grown))


def watch(root: Path, seconds: float, overrides: list[str]) -> list[dict[str, Any]] | None:
    """Readings of a run of that many seconds; None where it ended by itself, with its last words printed."""
    log = root / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "orchestration/run.py", "--config", "configs/quickstart.yaml", f"run.root={root}",
             "run.name=it", "run.updates=1000000", "checkpoint.every=10", f"checkpoint.keep={CHECKPOINTS}",
             "cluster.dashboard=false", "observe.console=false", *overrides],
            cwd=ROOT, stdout=file, stderr=file, env=os.environ | {"NO_COLOR": "1"},
        )  # fmt: skip
    readings: list[dict[str, Any]] = []
    began = None
    try:
        while began is None or time.monotonic() - began < seconds:
            if process.poll() is not None:
                print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
                return None
            if (root / "it" / "metrics.jsonl").exists() and (root / "it" / "metrics.jsonl").stat().st_size:
                began = began or time.monotonic()
                readings.append(reading(process.pid, root / "it", time.monotonic() - began))
            time.sleep(EVERY_S)
    finally:
        end_with_children(process.pid)
    return readings


def reading(driver: int, run: Path, at_s: float) -> dict[str, Any]:
    """Memory (MiB) and open files by kind of process, the run's and Ray's folder, updates done."""
    memory, files, peak = defaultdict[str, float](float), defaultdict[str, int](int), defaultdict[str, float](float)
    session: Path | None = None
    parent = psutil.Process(driver)
    for process in [parent, *parent.children(recursive=True)]:
        with suppress(psutil.Error):
            said = " ".join(process.cmdline())
            kind = "driver" if process.pid == driver else next((k for mark, k in KINDS.items() if mark in said), "ray")
            memory[kind] += process.memory_info().rss / 2**20
            files[kind] += process.num_fds()
            peak[kind] += _peak_mib(process.pid)
            if log := re.search(r"/gcs_server --log_dir=(\S+)", said):
                session = Path(log[1]).parent
    there = _files(run)
    checkpoints = len(list((run / "checkpoints").glob("step-*")))
    return {
        "at_s": at_s, "memory_mib": dict(memory), "peak_mib": dict(peak), "files": dict(files),
        "folder_files": len(there),
        "folder_mib": _mib(there), "ray_folder_mib": _mib(_files(session)) if session else 0.0,
        "checkpoints": checkpoints,
        "updates": len((run / "metrics.jsonl").read_bytes().splitlines()),
    }  # fmt: skip


def figures_of(readings: list[dict[str, Any]]) -> dict[str, Any]:
    """Level and slope of each kind's memory, and the readings."""
    late = readings[len(readings) // 4 :]
    hours = np.array([one["at_s"] for one in late]) / 3600
    kinds = {}
    for kind in NAMES:
        level = np.array([one["memory_mib"].get(kind, 0.0) for one in late])
        slope = float(np.polyfit(hours, level, 1)[0])
        kinds[kind] = {
            "level_mib": float(level.mean()), "peak_mib": late[-1]["peak_mib"].get(kind, 0.0),
            "slope_mib_an_hour": slope,
            "flat": bool(slope < FLAT_SHARE_AN_HOUR * level.mean()),
            "files_first": late[0]["files"].get(kind, 0), "files_last": late[-1]["files"].get(kind, 0),
        }  # fmt: skip
    return {
        "hours": readings[-1]["at_s"] / 3600, "updates": readings[-1]["updates"], "kinds": kinds,
        "checkpoints_most": max(one["checkpoints"] for one in readings), "readings": readings,
    }  # fmt: skip


def what_grew(figures: dict[str, Any]) -> list[str]:
    """In words; empty where nothing did. The run's folder gets a line an update in its logs and its ledger."""
    kinds = figures["kinds"].items()
    grown = [f"memory of {kind}" for kind, one in kinds if not one["flat"]]
    grown += [f"files of {kind}" for kind, one in kinds if one["files_last"] > one["files_first"] + MORE_FILES]
    return grown + ["checkpoints"] * (
        figures["checkpoints_most"] > CHECKPOINTS + 1
    )  # one is there before the oldest goes


def plot(figures: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4))
    hours = [one["at_s"] / 3600 for one in figures["readings"]]
    for kind in NAMES:
        axes.plot(hours, [one["memory_mib"].get(kind, 0.0) for one in figures["readings"]], label=kind)
    axes.set(xlabel="hours", ylabel="resident memory, MiB", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def _peak_mib(pid: int) -> float:
    """The most it ever had resident."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    return 0.0


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _mib(files: list[Path]) -> float:
    return sum(_size(path) for path in files) / 2**20


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.soak", description="Does anything grow?")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures are kept")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


if __name__ == "__main__":
    sys.exit(main())
