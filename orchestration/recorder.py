"""Keeps a run's books of figures: clocks, one line of metrics an update, sampled groups, the summary."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import nan
from statistics import fmean

import ray

from configs.schema import RunConfig
from learner.durable import replace_durably
from learner.sync_times import SyncTimes
from learner.update_sums import UpdateSums
from orchestration.advice import Advisor
from orchestration.budget import beyond_bound, is_over, is_stopped
from orchestration.console import Console
from orchestration.dispatch import Dispatcher
from orchestration.engine_marks import (
    Clocks,
    cache_hits_between,
    evaluation_share,
    idle_between,
    moved_on,
    paused_between,
    tokens_between,
)
from orchestration.evaluation import Evaluation, gain_interval
from orchestration.fleet import Fleet
from orchestration.learners import Learners
from orchestration.metrics import MetricsLog, Summary, write_summary
from orchestration.metrics_table import HeldOutMetrics, UpdateMetrics
from orchestration.queue_client import QueueClient
from orchestration.replay_buffer import Depth, Taken
from orchestration.run_folder import RunFolder
from orchestration.totals import RecorderState, Spans, Totals, Unrecorded
from orchestration.trackers import Trackers


class Recorder:
    """`began`: `time.monotonic()` at the start of the process. Use as a context manager: it closes the metrics file.

    `last`: the figures of the last update this process did.
    """

    def __init__(
        self, config: RunConfig, folder: RunFolder, console: Console, fleet: Fleet, replay: QueueClient,
        learners: Learners, dispatcher: Dispatcher, began: float, state: RecorderState | None = None,
        trackers: Trackers | None = None,
    ) -> None:  # fmt: skip
        self._config, self._folder, self._console = config, folder, console
        # A resumed run's clock goes on where the checkpoint was made.
        self._began = began - (state.elapsed_s if state is not None else 0.0)
        self._fleet, self._replay, self._learners, self._dispatcher = fleet, replay, learners, dispatcher
        self._log = MetricsLog(folder.metrics)
        self._trackers = Trackers((), console.say) if trackers is None else trackers
        self._totals = replace(state.totals) if state is not None else Totals()
        self._totals.beyond_stop, self._totals.stop = self._totals.beyond(config.run.stop), config.run.stop
        self.last: UpdateMetrics | None = None
        self._advisor = Advisor(takes_turns=config.cluster.colocated)
        # Of the process before: clocks of new engines know nothing of it.
        self._earlier = state.unrecorded if state is not None else Unrecorded()
        self._waits_s = self._earlier.learner_waits_s
        self._evaluation_tokens = 0  # since the update before
        self._last = time.monotonic()
        self._clocks: Clocks = {}

    @property
    def totals(self) -> Totals:
        """The run's sums so far."""
        return replace(self._totals)

    def is_over(self, updates: int) -> bool:
        """Whether the run ends with this many updates done: run.updates, run.max_tokens or run.stop is reached."""
        return is_over(self._config.run, updates, self._totals.sampled_tokens, self._totals.beyond_stop)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()
        self._trackers.close()

    async def begin(self) -> None:
        """Training begins now: what came before is start-up."""
        self._clocks = await self._fleet.clocks()
        self._last = time.monotonic() - self._earlier.wall_s

    @contextmanager
    def learner_waits(self) -> Iterator[None]:
        """The time in which the learner has no batch."""
        began = time.monotonic()
        try:
            yield
        finally:  # an interrupted wait counts, in the checkpoint that is made then
            self._waits_s += time.monotonic() - began

    async def record(
        self, update: int, taken: Taken, sums: UpdateSums, sync: SyncTimes, payloads: ray.ObjectRef
    ) -> None:
        """Write and show one update; keep a sample of its groups where due."""
        clocks, depth = await asyncio.gather(self._fleet.clocks(), self._replay.depth())
        now = time.monotonic()
        tokens = self._earlier.tokens + max(0, tokens_between(self._clocks, clocks) - self._evaluation_tokens)
        spans = Spans(
            now - self._last, self._waits_s, idle_between(self._clocks, clocks), paused_between(self._clocks, clocks),
            sync, tokens, cache_hits_between(self._clocks, clocks),
        )  # fmt: skip
        self._last, self._waits_s, self._clocks, self._evaluation_tokens = now, 0.0, clocks, 0
        self._earlier = Unrecorded()
        metrics = self._metrics(update, taken, sums, depth, spans)
        self._log.append(metrics)
        self._trackers.update(metrics)
        self.last = metrics
        if (stop := self._config.run.stop) is not None:
            self._totals.beyond_stop = beyond_bound(stop, self._totals.beyond_stop, getattr(metrics, stop.metric))
            if is_stopped(self._config.run, self._totals.beyond_stop):
                self._console.say(f"{stop.metric} ends the run: {self._totals.beyond_stop} updates in a row (run.stop)")
        self._console.update(metrics)
        for text in self._advisor.look(metrics):
            self.warn(text)
        if self._config.observe.sample_every and update % self._config.observe.sample_every == 0:
            self._keep_sample(update, (await payloads)[0])

    async def beside_training(self, evaluating: Awaitable[Evaluation]) -> Evaluation:
        """Wait for an evaluation: neither its tokens nor its share of the time count as training's."""
        began, before = time.monotonic(), await self._fleet.clocks()
        evaluation = await evaluating
        after = await self._fleet.clocks()
        share, seconds = evaluation_share(before, after, evaluation.sampled_tokens), time.monotonic() - began
        self._last += share * seconds
        if self.last is not None and self.last.queue_groups < self._config.grpo.groups_per_update:
            self._waits_s += (1 - share) * seconds  # there was no batch: the rest of it the learner waits
        self._clocks = moved_on(self._clocks, before, after, share)
        self._evaluation_tokens += evaluation.sampled_tokens
        return evaluation

    def held_out(self, line: HeldOutMetrics) -> None:
        """An evaluation is written: whoever tracks the run has it too."""
        self._trackers.held_out(line)

    def warn(self, text: str) -> None:
        """A line for whoever watches the run."""
        self._console.say(f"warning: {text}")

    def state(self) -> RecorderState:
        """For a checkpoint, together with the dispatcher's and its ledger as they are at the same moment."""
        now = time.monotonic()
        unrecorded = Unrecorded(self._dispatcher.sampled.sampled_tokens, now - self._last, self._waits_s)
        return RecorderState(now - self._began, replace(self._totals), self._log.position(), unrecorded)

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
            updates=self._dispatcher.version,
            success_before=before.success,
            success_after=after.success,
            success_gain_ci95=gain_interval(before.by_episode, after.by_episode),
            pass_at_k_before={str(k): v for k, v in before.pass_at_k.items()},
            pass_at_k_after={str(k): v for k, v in after.pass_at_k.items()},
            distinct_solutions_before=before.distinct_solutions,
            distinct_solutions_after=after.distinct_solutions,
            answer_entropy_before=before.answer_entropy,
            answer_entropy_after=after.answer_entropy,
            coverage_before=before.coverage,
            coverage_after=after.coverage,
            tickets={k: v for k, v in asdict(counts).items() if k not in ("queued", "in_flight")},
            ledger_balanced=counts.balanced,
            generated_tokens=totals.sampled_tokens,
            env_steps=totals.env_steps,
            rollout_tokens_per_s=totals.sampled_tokens / totals.training_s,
            learner_tokens_per_s=totals.learner_tokens / totals.learner_busy_s,
            weight_sync_s_mean=totals.sync_s / self._dispatcher.version,
            learner_idle_fraction=totals.learner_waits_s / totals.training_s,
            actor_idle_fraction=totals.actors_idle_s / totals.training_s,
            logprob_abs_diff_mean=totals.own_abs_diff / totals.own_tokens if totals.own_tokens else None,
            logprob_abs_diff_max=totals.own_abs_diff_max if totals.own_tokens else None,
            policy_lag_max=totals.lag_max,
            zero_advantage_share_mean=totals.groups_without_signal / totals.groups if totals.groups else None,
            duplicate_sketches_share=totals.duplicate_sketches / totals.sketches if totals.sketches else None,
            wall_s=time.monotonic() - self._began,
        )
        write_summary(self._folder.summary, summary)
        return summary

    def _metrics(self, update: int, taken: Taken, sums: UpdateSums, depth: Depth, spans: Spans) -> UpdateMetrics:
        sampled, counts = self._dispatcher.take_sampled(), self._dispatcher.ledger.counts()
        lags = [update - 1 - header.oldest_version for header in taken.fresh]
        trained = sum(header.trajectories for header in taken.fresh)
        self._totals.add(sums, spans, max(lags))
        self._totals.count(sampled)
        # Nothing may have been sampled meanwhile, as before the last update: no number then, not zero.
        solutions, groups, tokens = sampled.solutions or nan, sampled.groups or nan, sums.tokens or nan
        sketches = sampled.stats.sketches + sampled.stats.resampled_sketches
        rejected = sampled.stats.duplicate_sketches + sampled.stats.unparsable_sketches
        by_depth = sampled.pivots.recovered_by_depth
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
            trajectories=trained,
            tokens_trained=sums.tokens,
            generated_tokens=self._totals.sampled_tokens,
            rollout_tokens_per_s=spans.sampled_tokens / spans.wall_s,
            rollout_trajectories_per_s=sampled.trajectories / spans.wall_s,
            learner_tokens_per_s=sums.forward_tokens / sums.seconds,
            learner_trajectories_per_s=trained / sums.seconds,
            cache_hit_share=spans.cache_hit_share,
            policy_lag_mean=fmean(lags),
            policy_lag_max=max(lags),
            groups_lag_0=lags.count(0),
            groups_lag_1=lags.count(1),
            groups_lag_2_3=lags.count(2) + lags.count(3),
            groups_lag_4_up=sum(lag >= 4 for lag in lags),
            queue_groups=depth.groups,
            queue_bytes=depth.bytes,
            filtered=counts.filtered,
            stale=counts.stale,
            failed=counts.failed,
            ledger_missing=counts.issued - counts.accounted,
            actors_up=len(self._fleet.up),
            failed_episodes=sampled.failed_episodes,
            replaced_env_workers=sampled.replaced_workers,
            duplicate_sketches=sampled.stats.duplicate_sketches,
            unparsable_sketches=sampled.stats.unparsable_sketches,
            distinct_sketches_share=1 - rejected / sketches if sketches else None,
            distinct_answers_mean=sampled.distinct_answers / groups,
            distinct_solutions_mean=sampled.distinct_solutions / groups,
            duplicate_answers=sampled.stats.duplicate_answers,
            coverage=sampled.coverage,
            zero_advantage_share=sampled.without_signal / groups,
            pivots=sampled.pivots.pivots,
            pivots_recovered_share=sampled.pivots.recovered_share,
            pivot_gain_mean=sampled.pivots.gain_mean,
            pivot_depth_mean=sampled.pivots.depth_mean,
            recovered_depth_0_25=by_depth[0],
            recovered_depth_25_50=by_depth[1],
            recovered_depth_50_75=by_depth[2],
            recovered_depth_75_100=by_depth[3],
            branch_tokens=self._totals.branch_tokens,
            env_steps=self._totals.env_steps,
            weight_sync_s=spans.sync.total_s,
            sync_pause_s=spans.sync.pause_s,
            sync_gather_s=spans.sync.gather_s,
            sync_transfer_s=spans.sync.transfer_s,
            sync_load_s=spans.sync.load_s,
            learner_idle_share=spans.learner_waits_s / spans.wall_s,
            learner_step_share=sums.seconds / spans.wall_s,
            learner_sync_share=spans.sync.total_s / spans.wall_s,
            actor_idle_share=spans.actors_idle_s / spans.wall_s,
            actor_paused_share=spans.actors_paused_s / spans.wall_s,
            lr=sums.lr,
        )

    def _keep_sample(self, update: int, data: bytes) -> None:
        """A run whose disk is full goes on without."""
        try:
            replace_durably(self._folder.samples / f"update-{update:06d}.msgpack", data)
            there = sorted(self._folder.samples.glob("update-*.msgpack"), key=lambda path: (len(path.name), path.name))
            for old in there[: -self._config.observe.samples_kept]:
                old.unlink()
        except OSError as error:
            self.warn(f"{error.filename or self._folder.samples}: {error.strerror}: no group of this update is kept")
