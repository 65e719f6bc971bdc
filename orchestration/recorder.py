"""Keeps a run's books of figures: clocks, one line of metrics an update, sampled groups, the summary."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import nan
from statistics import fmean
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle

from actors.engine import EngineClock
from configs.schema import RunConfig
from learner.sync_times import SyncTimes
from learner.update_sums import UpdateSums
from orchestration.console import Console
from orchestration.dispatch import Dispatcher
from orchestration.evaluate import Evaluation, gain_interval
from orchestration.learners import Learners
from orchestration.metrics import MetricsLog, Summary, UpdateMetrics, write_summary
from orchestration.places import RolloutError
from orchestration.replay_queue import Depth, Taken
from orchestration.run_folder import RunFolder

if TYPE_CHECKING:
    from orchestration.session import Processes


@dataclass(frozen=True, slots=True)
class Spans:
    """Since the update before, seconds: in all, waiting for a batch, engines without work (mean), broadcasting.

    sampled_tokens: by all engines, of failed and dropped work too.
    """

    wall_s: float
    learner_waits_s: float
    actors_idle_s: float
    sync: SyncTimes
    sampled_tokens: int


@dataclass
class Totals:
    """Sums over the whole run, for the summary."""

    training_s: float = 0.0
    learner_waits_s: float = 0.0
    learner_busy_s: float = 0.0
    actors_idle_s: float = 0.0
    sync_s: float = 0.0
    sampled_tokens: int = 0
    learner_tokens: int = 0
    lag_max: int = 0
    own_tokens: int = 0
    own_abs_diff: float = 0.0
    own_abs_diff_max: float = 0.0

    def add(self, sums: UpdateSums, spans: Spans, lag_max: int) -> None:
        self.training_s += spans.wall_s
        self.learner_waits_s += spans.learner_waits_s
        self.learner_busy_s += sums.seconds
        self.actors_idle_s += spans.actors_idle_s
        self.sync_s += spans.sync.total_s
        self.sampled_tokens += spans.sampled_tokens
        self.learner_tokens += sums.forward_tokens
        self.lag_max = max(self.lag_max, lag_max)
        self.compare(sums)

    def compare(self, sums: UpdateSums) -> None:
        self.own_tokens += sums.own_tokens
        self.own_abs_diff += sums.own_abs_diff
        self.own_abs_diff_max = max(self.own_abs_diff_max, sums.own_abs_diff_max)


@dataclass(frozen=True, slots=True)
class RecorderState:
    """What a checkpoint keeps: seconds since the run's start, sums so far, and where metrics.jsonl ended, bytes."""

    elapsed_s: float
    totals: Totals
    metrics_bytes: int


class Recorder:
    """`began`: `time.monotonic()` at the start of the process. Use as a context manager: it closes the metrics file.

    `last`: the figures of the last update this process did.
    """

    def __init__(
        self, config: RunConfig, folder: RunFolder, console: Console, processes: Processes, learners: Learners,
        dispatcher: Dispatcher, began: float, state: RecorderState | None = None,
    ) -> None:  # fmt: skip
        self._config, self._folder, self._console = config, folder, console
        # A resumed run's clock goes on where the checkpoint was made.
        self._began = began - (state.elapsed_s if state is not None else 0.0)
        self._processes, self._learners, self._dispatcher = processes, learners, dispatcher
        self._log = MetricsLog(folder.metrics)
        self._totals = replace(state.totals) if state is not None else Totals()
        self.last: UpdateMetrics | None = None
        self._waits_s = 0.0
        self._last = time.monotonic()
        self._clocks: list[EngineClock] = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    async def begin(self) -> None:
        """Training begins now: what came before is start-up."""
        self._clocks = await self._read_clocks()
        self._last = time.monotonic()

    @contextmanager
    def learner_waits(self) -> Iterator[None]:
        """The time in which the learner has no batch."""
        began = time.monotonic()
        yield
        self._waits_s += time.monotonic() - began

    async def record(
        self, update: int, taken: Taken, sums: UpdateSums, sync: SyncTimes, payloads: ray.ObjectRef
    ) -> None:
        """Write and show one update; keep a sample of its groups where due."""
        clocks, depth = await asyncio.gather(self._read_clocks(), self._read_depth())
        now = time.monotonic()
        tokens = sum(new.sampled_tokens - old.sampled_tokens for new, old in zip(clocks, self._clocks, strict=True))
        spans = Spans(now - self._last, self._waits_s, self._idle_s(clocks), sync, tokens)
        self._last, self._waits_s, self._clocks = now, 0.0, clocks
        metrics = self._metrics(update, taken, sums, depth, spans)
        self._log.append(metrics)
        self.last = metrics
        self._console.update(metrics)
        if self._config.observe.sample_every and update % self._config.observe.sample_every == 0:
            self._keep_sample(update, (await payloads)[0])

    def warn(self, text: str) -> None:
        """A line for whoever watches the run."""
        self._console.say(f"warning: {text}")

    def state(self) -> RecorderState:
        """For a checkpoint."""
        return RecorderState(time.monotonic() - self._began, replace(self._totals), self._log.position())

    async def compare_logprobs(self, evaluation: Evaluation) -> None:
        """Engine against learner on evaluation samples: of the learner's own version, whatever the lag of training."""
        self._totals.compare(await self._learners.score(evaluation.payloads))

    def write_summary(self, before: Evaluation, after: Evaluation) -> Summary:
        """summary.json; the ledger must balance. Raises LedgerError."""
        counts, totals = self._dispatcher.ledger.counts(), self._totals
        counts.check()
        summary = Summary(
            env=self._config.env.name,
            sampler=self._config.sampler.name,
            seed=self._config.run.seed,
            updates=self._config.run.updates,
            success_before=before.success,
            success_after=after.success,
            success_gain_ci95=gain_interval(before.by_episode, after.by_episode),
            pass_at_k_before={str(k): v for k, v in before.pass_at_k.items()},
            pass_at_k_after={str(k): v for k, v in after.pass_at_k.items()},
            distinct_solutions_before=before.distinct_solutions,
            distinct_solutions_after=after.distinct_solutions,
            tickets={k: v for k, v in asdict(counts).items() if k not in ("queued", "in_flight")},
            ledger_balanced=counts.balanced,
            generated_tokens=totals.sampled_tokens,
            rollout_tokens_per_s=totals.sampled_tokens / totals.training_s,
            learner_tokens_per_s=totals.learner_tokens / totals.learner_busy_s,
            weight_sync_s_mean=totals.sync_s / self._config.run.updates,
            learner_idle_fraction=totals.learner_waits_s / totals.training_s,
            actor_idle_fraction=totals.actors_idle_s / totals.training_s,
            logprob_abs_diff_mean=totals.own_abs_diff / totals.own_tokens if totals.own_tokens else None,
            logprob_abs_diff_max=totals.own_abs_diff_max if totals.own_tokens else None,
            policy_lag_max=totals.lag_max,
            wall_s=time.monotonic() - self._began,
        )
        write_summary(self._folder.summary, summary)
        return summary

    def _metrics(self, update: int, taken: Taken, sums: UpdateSums, depth: Depth, spans: Spans) -> UpdateMetrics:
        sampled, counts = self._dispatcher.take_sampled(), self._dispatcher.ledger.counts()
        lags = [update - 1 - header.oldest_version for header in taken.fresh]
        self._totals.add(sums, spans, max(lags))
        # Nothing may have been sampled meanwhile, as before the last update: no number then, not zero.
        solutions, groups, tokens = sampled.solutions or nan, sampled.groups or nan, sums.tokens or nan
        sketches = sampled.stats.sketches + sampled.stats.resampled_sketches
        rejected = sampled.stats.duplicate_sketches + sampled.stats.unparsable_sketches
        return UpdateMetrics(
            update=update,
            time_s=time.monotonic() - self._began,
            reward_mean=sampled.reward_sum / solutions,
            success=sampled.solved / solutions,
            loss=sums.loss,
            entropy=sums.entropy / tokens,
            grad_norm=sums.grad_norm,
            clip_share=sums.clipped / tokens,
            importance_mean=sums.importance / tokens,
            logprob_abs_diff_mean=sums.own_abs_diff / sums.own_tokens if sums.own_tokens else None,
            logprob_abs_diff_max=sums.own_abs_diff_max if sums.own_tokens else None,
            kl=sums.kl / tokens if self._config.grpo.kl.coefficient else None,
            left_out_share=sums.left_out / tokens,
            skipped_steps=sums.skipped_steps,
            padding_share=1 - sums.computed_tokens / sums.attended if sums.attended else 0.0,
            shared_share=1 - sums.computed_tokens / sums.forward_tokens if sums.forward_tokens else 0.0,
            groups=len(taken.fresh),
            trajectories=sum(header.trajectories for header in taken.fresh),
            tokens_trained=sums.tokens,
            generated_tokens=self._totals.sampled_tokens,
            rollout_tokens_per_s=spans.sampled_tokens / spans.wall_s,
            learner_tokens_per_s=sums.forward_tokens / sums.seconds,
            policy_lag_mean=fmean(lags),
            policy_lag_max=max(lags),
            queue_groups=depth.groups,
            queue_bytes=depth.bytes,
            filtered=counts.filtered,
            stale=counts.stale,
            failed=counts.failed,
            failed_episodes=sampled.failed_episodes,
            duplicate_sketches=sampled.stats.duplicate_sketches,
            unparsable_sketches=sampled.stats.unparsable_sketches,
            distinct_sketches_share=1 - rejected / sketches if sketches else None,
            distinct_answers_mean=sampled.distinct_answers / groups,
            distinct_solutions_mean=sampled.distinct_solutions / groups,
            zero_advantage_share=sampled.without_signal / groups,
            weight_sync_s=spans.sync.total_s,
            sync_pause_s=spans.sync.pause_s,
            sync_gather_s=spans.sync.gather_s,
            sync_transfer_s=spans.sync.transfer_s,
            sync_load_s=spans.sync.load_s,
            learner_idle_share=spans.learner_waits_s / spans.wall_s,
            actor_idle_share=spans.actors_idle_s / spans.wall_s,
            lr=sums.lr,
        )

    def _keep_sample(self, update: int, data: bytes) -> None:
        final = self._folder.samples / f"update-{update:06d}.msgpack"
        partial = final.with_suffix(".partial")
        partial.write_bytes(data)
        partial.rename(final)

    def _idle_s(self, clocks: Sequence[EngineClock]) -> float:
        """Seconds since the last reading in which an engine neither stepped nor was paused for weights; mean."""
        gaps = [
            (new.up_s - old.up_s) - (new.busy_s - old.busy_s) - (new.paused_s - old.paused_s)
            for new, old in zip(clocks, self._clocks, strict=True)
        ]
        return max(fmean(gaps), 0.0)

    async def _read_clocks(self) -> list[EngineClock]:
        return await self._ask(self._processes.actors, "clock")

    async def _read_depth(self) -> Depth:
        return (await self._ask([self._processes.replay], "depth"))[0]

    async def _ask(self, handles: Sequence[ActorHandle], method: str) -> list[Any]:
        limit_s = self._config.sync.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return [await call for call in [getattr(handle, method).remote() for handle in handles]]
        except TimeoutError:
            raise RolloutError(f"an actor did not tell its {method} within {limit_s:g} s (sync.timeout_s)") from None
