"""What a run's figures call for: the alerts of configs/monitoring/alerts.yml, for who watches the console alone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from orchestration.metrics_table import UpdateMetrics

OVER = 10  # updates a mean is over


@dataclass(frozen=True, slots=True)
class Rule:
    """metric: whose mean over the last updates is looked at. beyond: of the mean and the highest so far."""

    metric: str
    beyond: Callable[[float, float], bool]
    text: str


RULES = (
    Rule(
        "entropy", lambda mean, highest: mean < 0.1 * highest,
        "entropy fell to {mean:.3g} nats, less than a tenth of its highest mean: the policy repeats itself; try "
        "grpo.entropy, a lower optim.lr or another sampler",
    ),
    Rule(
        "zero_advantage_share", lambda mean, _: mean > 0.95,
        "{mean:.0%} of the groups have no advantage, so there is nothing to learn from: easier or harder prompts, "
        "larger groups, or a sampler that explores",
    ),
    Rule(
        "learner_idle_share", lambda mean, _: mean > 0.7,
        "the learner waits {mean:.0%} of the time: python -m orchestration.scale RUN actors=N, or a higher "
        "queue.max_policy_lag",
    ),
    Rule(
        "actor_idle_share", lambda mean, _: mean > 0.7,
        "rollout actors are idle {mean:.0%} of the time: more deepspeed.ranks, a higher queue.max_policy_lag, or fewer "
        "actors",
    ),
    Rule(
        "logprob_abs_diff_mean", lambda mean, _: mean > 0.05,
        "engine and learner differ by {mean:.3g} nats a token: they do not compute the same policy; see Engine and "
        "learner in docs/learner.md",
    ),
)  # fmt: skip


def is_number(value: float | None) -> bool:
    """An update for which nothing was sampled or trained has none."""
    return value is not None and math.isfinite(value)


class Advisor:
    """Says each thing once, and again only after it was over."""

    def __init__(self, *, takes_turns: bool = False) -> None:
        # One of two that take turns always waits.
        self._rules = [rule for rule in RULES if not (takes_turns and rule.metric.endswith("_idle_share"))]
        self._last: deque[UpdateMetrics] = deque(maxlen=OVER)
        self._highest: dict[str, float] = {}
        self._told: set[str] = set()

    def look(self, line: UpdateMetrics) -> Iterator[str]:
        """What the figures call for behind this update; nothing before OVER updates are done."""
        self._last.append(line)
        if len(self._last) < OVER:
            return
        for rule in self._rules:
            values = [float(value) for one in self._last if is_number(value := getattr(one, rule.metric))]
            if values:
                yield from self._judged(rule, values)

    def _judged(self, rule: Rule, values: Sequence[float]) -> Iterator[str]:
        mean = fmean(values)
        highest = self._highest[rule.metric] = max(mean, self._highest.get(rule.metric, mean))
        if not rule.beyond(mean, highest):
            self._told.discard(rule.metric)
        elif rule.metric not in self._told:
            self._told.add(rule.metric)
            yield f"over the last {OVER} updates {rule.text.format(mean=mean)}"
