"""How held-out episodes are sampled: under the plain prompt, guided by sketches, or in lists."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from configs.samplers import DdeSettings, SamplerSettings, SequentialSettings, SesaSettings
from configs.schema import RunConfig

Mode = Literal["plain", "guided", "sequential"]

# Lists of an evaluation are tickets of their own; what repeats stays in them.
ONE_LIST = {"duplicates": "keep", "lists": 1, "baseline": "list"}


@dataclass(frozen=True, slots=True)
class Plan:
    """An episode is sampled in `lists` times `length` solutions: plain ones, or by the sampler of `settings`."""

    length: int
    lists: int = 1
    settings: SamplerSettings | None = None

    @property
    def samples(self) -> int:
        return self.lists * self.length

    def __str__(self) -> str:
        return f"{self.samples} samples" if self.settings is None else f"{self.lists} lists of {self.length}"


def plan_of(mode: Mode, sampler: SamplerSettings, samples: int) -> Plan:
    """About `samples` solutions of an episode; `sampler`: the config's, whose settings count where it is of that kind.

    Lists are whole, so there are as many as come nearest. A repeated solution of a list is a sample like any other and
    is not sampled again.
    """
    if mode == "plain":
        return Plan(samples)
    if mode == "guided":
        sesa = _sesa(sampler)
        length = sesa.sketches * sesa.expansions_per_sketch
        return Plan(length, max(1, round(samples / length)), sesa)
    settings = sampler if isinstance(sampler, SequentialSettings) else SequentialSettings()
    lists = max(1, round(samples / settings.solutions))
    return Plan(settings.solutions, lists, settings.model_copy(update=ONE_LIST))


def settings_digest(config: RunConfig) -> str:
    """Equal for equal settings of what held-out samples depend on; how a policy is trained does not count."""
    settings = config.model_dump(mode="json", include={"env", "model", "sampler", "rollout", "eval"})
    text = json.dumps([settings, config.run.seed], sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _sesa(sampler: SamplerSettings) -> SesaSettings:
    if isinstance(sampler, DdeSettings):
        sampler = sampler.root
    # Solutions without a sketch are for training: what is judged here is guided play.
    return sampler.model_copy(update={"plain_solutions": 0}) if isinstance(sampler, SesaSettings) else SesaSettings()
