"""Trajectories trained a second, end to end: this project's run against TRL's GRPOTrainer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from configs.load import load_config
from orchestration.cluster import ROOT
from orchestration.policy import ensure_policy
from tests.bench.rounds import ratio, rounded
from tests.bench.trl_loop import Job

GOAL = 2.0
UPDATES = 24
WARM = 4  # first updates that are not counted
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
# One answer of at most 48 tokens to each of 16 prompts, eight times.
SINGLE_TURN = ("env.max_turns=1", "sampler={name: parallel, group_size: 8}", "grpo.drop_zero_signal=false")
SHORT = ("eval.episodes=2", "eval.samples=2", "cluster.dashboard=false", "observe.console=false")
# Both sides may choose how they spread over two cores. Ours: rollout actors, learner ranks.
OUR_WAYS = ((2, 2), (1, 1))
# TRL's: processes, threads of each.
TRL_WAYS = ((1, 1), (1, 2), (2, 1))


def measure(rounds: int) -> dict[str, Any]:
    overrides = [*SINGLE_TURN, *SHORT, f"run.updates={UPDATES}"]
    config = load_config(QUICKSTART, overrides)
    policy = ensure_policy(config, print)
    trajectories = config.grpo.groups_per_update * 8
    ours = {f"ours_{actors}_actors_{ranks}_ranks": (actors, ranks) for actors, ranks in OUR_WAYS}
    trl = {f"trl_{n}_processes_{threads}_threads": (n, threads) for n, threads in TRL_WAYS}
    found: dict[str, list[float]] = {name: [] for name in (*ours, *trl)}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, (actors, ranks) in ours.items():
                way = [*overrides, f"rollout.actors={actors}", f"deepspeed.ranks={ranks}"]
                found[name].append(trajectories / median(our_seconds(way, Path(folder))))
            for name, (processes, threads) in trl.items():
                job = Job(config.model_dump(mode="json"), str(policy), UPDATES, threads)
                found[name].append(trajectories / median(trl_seconds(job, processes, Path(folder))))
    best_of_ours, best_of_trl = (max(ways, key=lambda name: median(found[name])) for ways in (ours, trl))
    return {
        "goal_ratio_at_least": GOAL,
        "prompts": config.grpo.groups_per_update,
        "group_size": 8,
        "most_new_tokens": config.rollout.tokens_per_turn,
        "trajectories_per_s": {name: rounded(median(values)) for name, values in found.items()},
        "ratio_best_to_best": rounded(ratio(found[best_of_ours], found[best_of_trl])),
    }


def our_seconds(overrides: Sequence[str], folder: Path) -> list[float]:
    """Seconds of each update of a whole run, but the first ones and the last, which no longer samples ahead."""
    lines = metrics_of(finished_run(overrides, folder))
    times = [line["time_s"] for line in lines]
    return [later - earlier for earlier, later in zip(times[WARM:-2], times[WARM + 1 : -1], strict=True)]


def finished_run(overrides: Sequence[str], folder: Path) -> Path:
    """The folder of a run made by run.py in processes of its own."""
    name = f"bench-{len(list(folder.iterdir()))}"
    program = [sys.executable, str(ROOT / "orchestration" / "run.py"), "--config", str(QUICKSTART)]
    where = [f"run.root={folder}", f"run.name={name}"]
    finished([[*program, *overrides, *where]], [{}])
    return folder / name


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def trl_seconds(job: Job, processes: int, folder: Path) -> list[float]:
    """Seconds of each step but the first ones."""
    written = folder / "trl.json"
    written.write_text(json.dumps(asdict(job)), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    ranks = [{"RANK": str(i), "LOCAL_RANK": str(i), **group} if processes > 1 else {} for i in range(processes)]
    threads = {"OMP_NUM_THREADS": str(job.threads)}
    program = [sys.executable, "-m", "tests.bench.trl_loop", str(written)]
    said = finished([program] * processes, [{**rank, **threads} for rank in ranks])
    seconds: list[float] = json.loads(said[0].strip().splitlines()[-1])
    return seconds[WARM:]


def finished(programs: Sequence[Sequence[str]], environments: Sequence[dict[str, str]]) -> list[str]:
    """Run programs beside each other; what each printed. Raises RuntimeError with the end of a failing one's errors."""
    running = [
        subprocess.Popen(program, cwd=ROOT, env=os.environ | environment, stdout=-1, stderr=-1, text=True)
        for program, environment in zip(programs, environments, strict=True)
    ]
    outputs = [process.communicate() for process in running]
    for program, process, (_, errors) in zip(programs, running, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"{program} ended with {process.returncode}: {errors[-2000:]}")
    return [said for said, _ in outputs]
