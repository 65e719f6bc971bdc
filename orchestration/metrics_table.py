"""The table of metrics: what is kept of every update, with unit, meaning and healthy range."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter

PREFIX, HELD_OUT = "sesa_", "held_out_"
EXPORTED = f"ray_{PREFIX}"  # the name of a gauge in Prometheus begins with it


@dataclass(frozen=True, slots=True)
class About:
    """unit: "1" for a number without one; shares are 0 to 1. healthy: what a run in good order shows."""

    unit: str
    healthy: str


@dataclass(frozen=True, slots=True)
class UpdateMetrics:
    """One update. Of its batch unless said otherwise; "cumulative" counts from the run's start; shares are 0 to 1."""

    __pydantic_config__: ClassVar = ConfigDict(use_attribute_docstrings=True)  # read by `metrics_table`

    update: Annotated[int, About("updates", "one more each line")]
    """Updates done, this one included."""
    time_s: Annotated[float, About("s", "rises")]
    """Seconds since the run's start; goes on where a resumed run left off."""
    reward_mean: Annotated[float, About("reward", "rises")]
    """Mean reward of the solutions sampled since the update before, dropped groups included, failed ones not. The
    sampler's own: branches, which begin where a solution went wrong, are no solutions here or below."""
    success: Annotated[float, About("share", "rises; 0 or 1 throughout teaches nothing")]
    """Share of solved ones among the same solutions; of the sampler's own prompts, so guided where it guides."""
    loss: Annotated[float, About("1", "near 0; its size says nothing about progress")]
    """The whole loss, all streams, before the step."""
    entropy: Annotated[float, About("nats", "falls slowly; near 0 the policy has collapsed")]
    """Mean entropy of the policy at the trained tokens."""
    grad_norm: Annotated[float, About("1", "steady; spikes beyond ten times the usual are clipped")]
    """Norm of the gradient before clipping."""
    clip_share: Annotated[float, About("share", "below 0.2")]
    """Share of trained tokens whose ratio was clipped."""
    importance_mean: Annotated[float, About("1", "0.9 to 1.1")]
    """Mean truncated importance weight of the trained tokens: learner over engine, capped."""
    logprob_abs_diff_mean: Annotated[float | None, About("nats", "below 1e-4 in float32, below 0.02 in bfloat16")]
    """Mean |learner's - engine's log-prob| of tokens of the learner's own version; None without such tokens."""
    logprob_abs_diff_max: Annotated[float | None, About("nats", "below 1e-3 in float32, below 1 in bfloat16")]
    """The largest of those; None without such tokens."""
    kl: Annotated[float | None, About("nats", "rises slowly; below 0.1")]
    """Mean estimate of the distance to the reference policy at the trained tokens; None without a reference."""
    left_out_share: Annotated[float, About("share", "below 0.05")]
    """Share of trained tokens whose sequence was left out as too far off policy (importance.max_divergence)."""
    skipped_steps: Annotated[int, About("steps", "0")]
    """Optimizer steps left out because the loss or the gradient was no number."""
    padding_share: Annotated[float, About("share", "below 0.1 with packing")]
    """Share of the positions attention worked through that were padding."""
    shared_share: Annotated[float, About("share", "the higher the cheaper the update")]
    """Share of the rows' tokens that were not computed, as another row of the group begins with the same."""
    groups: Annotated[int, About("groups", "grpo.groups_per_update")]
    """Groups trained."""
    trajectories: Annotated[int, About("trajectories", "steady")]
    """Trajectories in those groups."""
    tokens_trained: Annotated[int, About("tokens", "steady")]
    """Tokens with a loss."""
    generated_tokens: Annotated[int, About("tokens", "rises")]
    """Tokens sampled by all actors, dropped ones included; cumulative."""
    branch_tokens: Annotated[int, About("tokens", "rises with DDE, else 0")]
    """Of them, those of branches in groups that ended; cumulative."""
    env_steps: Annotated[int, About("steps", "rises")]
    """Answers that environments judged, branches and dropped groups included; cumulative."""
    rollout_tokens_per_s: Annotated[float, About("tokens/s", "steady; falls where answers grow short")]
    """Tokens sampled by all actors in a second, since the update before."""
    rollout_trajectories_per_s: Annotated[float, About("trajectories/s", "steady")]
    """Trajectories of groups that ended in a second, all streams, since the update before."""
    learner_tokens_per_s: Annotated[float, About("tokens/s", "steady")]
    """Tokens, contexts included, the learner worked through in a second of its step."""
    learner_trajectories_per_s: Annotated[float, About("trajectories/s", "steady")]
    """Trajectories trained in a second of the learner's step."""
    cache_hit_share: Annotated[float | None, About("share", "above 0.3 where turns and groups share beginnings")]
    """Share of the prompts' tokens that engines found in their prefix cache since the update before; None without
    prompts."""
    policy_lag_mean: Annotated[float, About("updates", "at most queue.max_policy_lag")]
    """Mean lag of the batch's groups: the learner's version minus their oldest token's."""
    policy_lag_max: Annotated[int, About("updates", "at most queue.max_policy_lag")]
    """The largest of those lags."""
    groups_lag_0: Annotated[int, About("groups", "most of them at queue.max_policy_lag 0")]
    """Groups of the batch with no lag: the histogram of lags."""
    groups_lag_1: Annotated[int, About("groups", "at most groups")]
    """Those of lag 1."""
    groups_lag_2_3: Annotated[int, About("groups", "0 where queue.max_policy_lag is below 2")]
    """Those of lags 2 and 3."""
    groups_lag_4_up: Annotated[int, About("groups", "0 where queue.max_policy_lag is below 4")]
    """Those of lag 4 and more."""
    queue_groups: Annotated[int, About("groups", "below queue.max_groups")]
    """Groups left in the queue."""
    queue_bytes: Annotated[int, About("bytes", "below queue.max_mib")]
    """Their messages' bytes."""
    filtered: Annotated[int, About("tickets", "at most half of those issued")]
    """Tickets dropped for lack of signal, or with an update that had no finite gradient; cumulative."""
    stale: Annotated[int, About("tickets", "a few in a hundred at most")]
    """Tickets dropped for their lag; cumulative."""
    failed: Annotated[int, About("tickets", "0")]
    """Tickets given up after their attempts; cumulative."""
    ledger_missing: Annotated[int, About("tickets", "0: anything else is a fault of this program")]
    """Tickets issued less those the ledger knows the state of."""
    actors_up: Annotated[int, About("actors", "rollout.actors")]
    """Rollout actors that sample now."""
    failed_episodes: Annotated[int, About("episodes", "0")]
    """Episodes sampled since the update before that their environment failed: in no row, baseline or success."""
    replaced_env_workers: Annotated[int, About("workers", "0")]
    """Environment workers that a call has cost since the update before: it hung, crashed or ran out of memory there, or
    its ticket was given up."""
    duplicate_sketches: Annotated[int, About("sketches", "well below the sketches drafted")]
    """Sketches sampled since the update before that repeated an earlier one of their list."""
    unparsable_sketches: Annotated[int, About("sketches", "falls to 0")]
    """Sketches that could not be read."""
    distinct_sketches_share: Annotated[float | None, About("share", "above 0.7")]
    """Share of sketches that were readable and new in their list; None where none were drafted."""
    distinct_answers_mean: Annotated[float, About("answers", "above 1; near 1 exploration has ended")]
    """Mean number of different answers in a group sampled since the update before."""
    distinct_solutions_mean: Annotated[float, About("answers", "rises")]
    """Mean number of different correct answers in such a group: of path exploration, the targets it covers."""
    duplicate_answers: Annotated[int, About("answers", "well below the solutions sampled")]
    """Solutions sampled since the update before that repeated an earlier one of their list (sequential, verbalized)."""
    coverage: Annotated[float | None, About("share", "rises")]
    """Share of the right answers that were found since the update before, in branches too. Where all episodes of a
    prompt have them in common (path exploration): different ones found, over all groups, out of all there are. Else:
    share of the groups with an episode that solved it. None where nothing was sampled."""
    zero_advantage_share: Annotated[float, About("share", "below 0.7; near 1 there is nothing to learn from")]
    """Share of the groups sampled since the update before that have no advantage: equal rewards in each comparison."""
    pivots: Annotated[int, About("states", "above 0 with DDE while solutions fail")]
    """States of failed trajectories that were resampled from since the update before, with a judged branch."""
    pivots_recovered_share: Annotated[float | None, About("share", "0.1 to 0.9")]
    """Share of them a branch of which solved it; None without pivots, as all that follows of them."""
    pivot_gain_mean: Annotated[float | None, About("reward", "above 0")]
    """Mean gain of a pivot: the mean reward of its branches less the reward of the trajectory that failed."""
    pivot_depth_mean: Annotated[float | None, About("share", "0.2 to 0.8")]
    """Mean depth of them: share of the failed trajectory's sampled tokens that lie before."""
    recovered_depth_0_25: Annotated[float | None, About("share", "above 0")]
    """Recovered share of the pivots of depths [0, 0.25); None where there are none."""
    recovered_depth_25_50: Annotated[float | None, About("share", "above 0")]
    """The same of depths [0.25, 0.5)."""
    recovered_depth_50_75: Annotated[float | None, About("share", "above 0")]
    """The same of depths [0.5, 0.75)."""
    recovered_depth_75_100: Annotated[float | None, About("share", "lower than the others")]
    """The same of depths [0.75, 1]."""
    weight_sync_s: Annotated[float, About("s", "small beside the time of an update")]
    """Seconds from the call for a broadcast to the last actor resumed."""
    sync_pause_s: Annotated[float, About("s", "at most the time of one engine step")]
    """Of them, until the last engine stood between two steps; the four phases overlap."""
    sync_gather_s: Annotated[float, About("s", "small")]
    """Making whole parameters out of the ranks' parts."""
    sync_transfer_s: Annotated[float, About("s", "bytes of the policy over the wire's speed")]
    """What waiting for the wire added."""
    sync_load_s: Annotated[float, About("s", "small")]
    """Loading into the slowest engine's layers."""
    learner_idle_share: Annotated[float, About("share", "below 0.5; more: add actors")]
    """Share of the time since the update before in which the learner waited for a batch; with cluster.colocated that is
    when engines sample."""
    learner_step_share: Annotated[float, About("share", "above 0.4")]
    """Share of that time in which the learner worked on a batch."""
    learner_sync_share: Annotated[float, About("share", "below 0.1")]
    """Share of that time in which it handed out weights; what is left are checkpoints, evaluations and bookkeeping."""
    actor_idle_share: Annotated[
        float, About("share", "below 0.3; more: raise queue.max_policy_lag or prompts_in_flight")
    ]
    """Share of that time in which an engine had nothing to sample, mean of the actors."""
    actor_paused_share: Annotated[float, About("share", "below 0.1")]
    """Share of that time in which an engine stood still for new weights, or slept through an update
    (cluster.colocated), mean of the actors; else it samples."""
    lr: Annotated[float, About("1", "follows optim.schedule")]
    """Learning rate of the step."""


@dataclass(frozen=True, slots=True)
class HeldOutMetrics:
    """One evaluation on held-out episodes under the plain prompt, without sketches."""

    __pydantic_config__: ClassVar = ConfigDict(use_attribute_docstrings=True)

    update: Annotated[int, About("updates", "0, every eval.every updates, and the last")]
    """Updates done."""
    generated_tokens: Annotated[int, About("tokens", "rises")]
    """Tokens sampled for training until then."""
    env_steps: Annotated[int, About("steps", "rises")]
    """Answers that environments judged for training until then."""
    success: Annotated[float, About("share", "rises")]
    """Mean over the episodes of the share of their samples that solved them."""
    success_low: Annotated[float | None, About("share", "the interval narrows with eval.episodes")]
    """Lower end of the 95 % interval of success over episodes; None for a single one."""
    success_high: Annotated[float | None, About("share", "the interval narrows with eval.episodes")]
    """Its upper end."""
    pass_at_k: Annotated[dict[str, float], About("share", "does not fall while success rises")]
    """{"1": x, "2": y, ...}: chance that at least one of k samples solves an episode; k doubles up to all samples."""
    coverage: Annotated[float, About("share", "rises")]
    """Share of the right answers that were found: of those all episodes of a prompt have in common (path exploration),
    else of episodes with a solved sample."""
    distinct_solutions: Annotated[float, About("answers", "does not fall to 1 where there are several")]
    """Mean number of different correct answers among the samples of an episode; of path exploration, its coverage."""
    answer_entropy: Annotated[float, About("nats", "falls slowly; near 0 all samples are alike")]
    """Entropy of the answers to an episode, mean over episodes; the plug-in estimate, at most log(samples)."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A line of the table. optional: its value may be None."""

    name: str
    unit: str
    meaning: str
    healthy: str
    optional: bool


def metrics_table(kind: type[UpdateMetrics] | type[HeldOutMetrics]) -> tuple[Metric, ...]:
    """All metrics of an update or an evaluation, in the order of their lines' keys."""
    properties = TypeAdapter(kind).json_schema()["properties"]
    hints = get_type_hints(kind, include_extras=True)
    metrics = []
    for name, said in properties.items():
        (about,) = hints[name].__metadata__
        meaning = " ".join(said["description"].split())
        metrics.append(Metric(name, about.unit, meaning, about.healthy, "anyOf" in said))
    return tuple(metrics)


def gauges() -> dict[str, Metric]:
    """All metrics by the names of their gauges, without PREFIX: those of an evaluation begin with HELD_OUT."""
    held_out = {HELD_OUT + metric.name: metric for metric in metrics_table(HeldOutMetrics)}
    return {metric.name: metric for metric in metrics_table(UpdateMetrics)} | held_out


def scalars(line: UpdateMetrics | HeldOutMetrics) -> dict[str, float]:
    """The line's figures by name, `pass_at_8` for those of a mapping; without those that are None or no number."""
    flat: dict[str, float | None] = {}
    for name, value in asdict(line).items():
        if isinstance(value, dict):
            flat |= {f"{name.removesuffix('_k')}_{k}": inner for k, inner in value.items()}
        else:
            flat[name] = value
    return {name: float(value) for name, value in flat.items() if value is not None and math.isfinite(value)}
