"""What a run reports: a line an update (metrics.jsonl), and its summary (summary.json)."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from configs.files import open_file
from configs.schema import RunConfig
from learner.durable import replace_durably
from orchestration.metrics_table import UpdateMetrics

_LONGEST_LINE = 2**20


@dataclass(frozen=True, slots=True)
class Summary:
    """The whole run: the keys of summary.json. Success is of held-out seeds with the plain prompt."""

    env: str
    sampler: str
    seed: int
    updates: int
    success_before: float
    success_after: float
    success_gain_ci95: tuple[float, float]
    """95 % interval of success_after - success_before, paired by seed."""
    pass_at_k_before: Mapping[str, float]
    """{"1": x, "2": y, ...}: chance that at least one of k samples solves it; k doubles up to all samples."""
    pass_at_k_after: Mapping[str, float]
    distinct_solutions_before: float
    """Mean number of different correct answers among the samples of a seed; of path exploration, its coverage."""
    distinct_solutions_after: float
    answer_entropy_before: float
    """Entropy of the answers to a seed, nats, mean over seeds; the plug-in estimate, at most log(samples)."""
    answer_entropy_after: float
    coverage_before: float
    """Share of the right answers found: of those all seeds of a prompt have in common (path exploration), else of seeds
    with a solved sample."""
    coverage_after: float
    tickets: Mapping[str, int]
    """issued, trained, filtered, stale, failed, cancelled."""
    ledger_balanced: bool
    generated_tokens: int
    env_steps: int
    """Answers that environments judged while training."""
    rollout_tokens_per_s: float
    learner_tokens_per_s: float
    weight_sync_s_mean: float
    learner_idle_fraction: float
    actor_idle_fraction: float
    logprob_abs_diff_mean: float | None
    """Of tokens of the learner's own version, nats; None where a run trained none."""
    logprob_abs_diff_max: float | None
    policy_lag_max: int
    zero_advantage_share_mean: float | None
    """Share of all groups sampled while training that had no advantage."""
    duplicate_sketches_share: float | None
    """Share of all sketches that repeated an earlier one of their list; None where none were drafted."""
    wall_s: float


class MetricsLog:
    """Appends a line of JSON an update. A line that a crash left unfinished is cut off first."""

    def __init__(self, path: Path) -> None:
        _cut_unfinished_line(path)
        self._file = path.open("a", encoding="utf-8")

    def append(self, metrics: UpdateMetrics) -> None:
        """Write one line and hand it to the system; NaN and infinities become null."""
        self._file.write(json.dumps(_finite(asdict(metrics)), allow_nan=False) + "\n")
        self._file.flush()

    def position(self) -> int:
        """Bytes written, all of them on disk."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def metric_problem(name: str) -> str | None:
    """What is wrong with a metric's name; None when metrics.jsonl has it."""
    names = [field.name for field in fields(UpdateMetrics)]
    if name in names:
        return None
    near = difflib.get_close_matches(name, names, n=1)
    return f"metrics.jsonl has no '{name}'" + (f"; did you mean '{near[0]}'?" if near else f": {', '.join(names)}")


def metric_problems(config: RunConfig) -> list[str]:
    """What is wrong with the metrics that a configuration names."""
    stop = config.run.stop
    named = {"checkpoint.best_by": config.checkpoint.best_by, "run.stop.metric": stop.metric if stop else None}
    return [
        f"{key}: {problem}" for key, name in named.items() if name is not None and (problem := metric_problem(name))
    ]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The finished lines in the order of their updates; of an update done again after a resume the last line counts.

    Raises OSError, and ValueError naming the line that is no JSON object with an `update`.
    """
    lines: dict[int, dict[str, Any]] = {}
    with open_file(path) as file:
        for number, text in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
            if not text.endswith(b"\n") and len(text) < _LONGEST_LINE:
                break
            try:
                line = json.loads(text.decode())
                lines[_update_of(line)] = line
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ValueError(f"{path}: line {number} is no line of metrics: {error}") from error
    return [lines[update] for update in sorted(lines)]


def _update_of(line: Any) -> int:
    update = line["update"]
    if type(update) is not int or not 0 <= update < 2**53:
        raise ValueError(f"update {update!r:.40}")
    return update


def write_summary(path: Path, summary: Summary) -> None:
    """Write summary.json whole or not at all; NaN and infinities become null."""
    replace_durably(path, (json.dumps(_finite(asdict(summary)), indent=2, allow_nan=False) + "\n").encode())


def _cut_unfinished_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)


def _finite(value: Any) -> Any:
    """The value with None for every number JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
