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

_LONGEST_LINE = 2**20


@dataclass(frozen=True, slots=True)
class UpdateMetrics:
    """One update. Of its batch unless said otherwise; "cumulative" counts from the run's start; shares are 0 to 1."""

    update: int
    """Updates done, this one included."""
    time_s: float
    """Seconds since the run's start; goes on where a resumed run left off."""
    reward_mean: float
    """Mean reward of the solutions sampled since the update before, dropped groups included, failed ones not.

    The sampler's own: branches, which begin where a solution went wrong, are no solutions here or below."""
    success: float
    """Share of solved ones among the same solutions; of the sampler's own prompts, so guided where it guides."""
    loss: float
    """The whole loss, all streams, before the step."""
    entropy: float
    """Mean entropy of the policy at the trained tokens, nats."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    clip_share: float
    """Share of trained tokens whose ratio was clipped."""
    importance_mean: float
    """Mean truncated importance weight of the trained tokens: learner over engine, capped."""
    logprob_abs_diff_mean: float | None
    """Mean |learner's - engine's log-prob|, nats, of tokens of the learner's own version; None without such tokens."""
    logprob_abs_diff_max: float | None
    """The largest of those; None without such tokens."""
    kl: float | None
    """Mean estimate of the distance to the reference policy at the trained tokens, nats; None without a reference."""
    left_out_share: float
    """Share of trained tokens whose sequence was left out as too far off policy (importance.max_divergence)."""
    skipped_steps: int
    """Optimizer steps left out because the loss or the gradient was no number."""
    padding_share: float
    """Share of the positions attention worked through that were padding."""
    shared_share: float
    """Share of the rows' tokens that were not computed, as another row of the group begins with the same."""
    groups: int
    """Groups trained."""
    trajectories: int
    """Trajectories in those groups."""
    tokens_trained: int
    """Tokens with a loss."""
    generated_tokens: int
    """Tokens sampled by all actors, dropped ones included; cumulative."""
    branch_tokens: int
    """Of them, those of branches in groups that ended; cumulative."""
    env_steps: int
    """Answers that environments judged, branches and dropped groups included; cumulative."""
    rollout_tokens_per_s: float
    """Tokens sampled by all actors in a second, since the update before."""
    learner_tokens_per_s: float
    """Tokens, contexts included, the learner worked through in a second of its step."""
    policy_lag_mean: float
    """Mean lag of the batch's groups: the learner's version minus their oldest token's, updates."""
    policy_lag_max: int
    """The largest of those lags."""
    queue_groups: int
    """Groups left in the queue."""
    queue_bytes: int
    """Their messages' bytes."""
    filtered: int
    """Tickets dropped for lack of signal, or with an update that had no finite gradient; cumulative."""
    stale: int
    """Tickets dropped for their lag; cumulative."""
    failed: int
    """Tickets given up after their attempts; cumulative."""
    failed_episodes: int
    """Episodes sampled since the update before that their environment failed: in no row, baseline or success."""
    replaced_env_workers: int
    """Environment workers that a call has cost since the update before: it hung, crashed or ran out of memory there, or
    its ticket was given up."""
    duplicate_sketches: int
    """Sketches sampled since the update before that repeated an earlier one of their list."""
    unparsable_sketches: int
    """Sketches that could not be read."""
    distinct_sketches_share: float | None
    """Share of sketches that were readable and new in their list; None where none were drafted."""
    distinct_answers_mean: float
    """Mean number of different answers in a group sampled since the update before."""
    distinct_solutions_mean: float
    """Mean number of different correct answers in such a group: of path exploration, the targets it covers."""
    duplicate_answers: int
    """Solutions sampled since the update before that repeated an earlier one of their list (sequential, verbalized)."""
    coverage: float | None
    """Share of the right answers that were found since the update before, in branches too.

    Where all episodes of a prompt have them in common (path exploration): different ones found, over all groups, out of
    all there are. Else: share of the groups with an episode that solved it. None where nothing was sampled."""
    zero_advantage_share: float
    """Share of the groups sampled since the update before that have no advantage: equal rewards in each comparison."""
    pivots: int
    """States of failed trajectories that were resampled from since the update before, with a judged branch."""
    pivots_recovered_share: float | None
    """Share of them a branch of which solved it; None without pivots, as all that follows of them."""
    pivot_gain_mean: float | None
    """Mean gain of a pivot: the mean reward of its branches less the reward of the trajectory that failed."""
    pivot_depth_mean: float | None
    """Mean depth of them: share of the failed trajectory's sampled tokens that lie before."""
    recovered_depth_0_25: float | None
    """Recovered share of the pivots of depths [0, 0.25); None where there are none."""
    recovered_depth_25_50: float | None
    """The same of depths [0.25, 0.5)."""
    recovered_depth_50_75: float | None
    """The same of depths [0.5, 0.75)."""
    recovered_depth_75_100: float | None
    """The same of depths [0.75, 1]."""
    weight_sync_s: float
    """Seconds from the call for a broadcast to the last actor resumed."""
    sync_pause_s: float
    """Of them, until the last engine stood between two steps; the four phases overlap."""
    sync_gather_s: float
    """Making whole parameters out of the ranks' parts."""
    sync_transfer_s: float
    """What waiting for the wire added."""
    sync_load_s: float
    """Loading into the slowest engine's layers."""
    learner_idle_share: float
    """Share of the time since the update before in which the learner waited for a batch."""
    actor_idle_share: float
    """Share of that time in which an engine had nothing to sample, mean of the actors."""
    lr: float
    """Learning rate of the step."""


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
