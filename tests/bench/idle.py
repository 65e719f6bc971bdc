"""How long the learner waits for a batch and the engines for work, by how far sampling may run ahead."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.end_to_end import SHORT, WARM, finished_run, metrics_of
from tests.bench.rounds import rounded

LAGS = (0, 1, 4)
UPDATES = 16
SHARES = ("learner_idle_share", "actor_idle_share")


def measure(rounds: int) -> dict[str, Any]:
    """The quickstart's own run (SESA, multi-turn) at each max_policy_lag; medians of all rounds' updates."""
    lines: dict[int, list[dict[str, Any]]] = {lag: [] for lag in LAGS}
    seconds: dict[int, list[float]] = {lag: [] for lag in LAGS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for lag in LAGS:
                # Room for all that may be sampled ahead, so that the bound on the lag is what holds actors back.
                overrides = [*SHORT, f"run.updates={UPDATES}", f"queue.max_policy_lag={lag}", "queue.max_groups=128"]
                run = metrics_of(finished_run(overrides, Path(folder)))
                counted = run[WARM : -1 - lag]  # at the end nothing is sampled ahead any more
                lines[lag] += counted
                seconds[lag].append((counted[-1]["time_s"] - counted[0]["time_s"]) / (len(counted) - 1))
    return {
        f"max_policy_lag_{lag}": {
            **{share: rounded(median(line[share] for line in lines[lag])) for share in SHARES},
            "seconds_an_update": rounded(median(seconds[lag])),
        }
        for lag in LAGS
    }
