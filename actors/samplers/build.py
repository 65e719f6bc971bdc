"""From the `sampler` group of a config to its sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.rollout import Sampler
from actors.samplers.parallel import ParallelSampler
from actors.samplers.sequential import SequentialSampler
from actors.samplers.sesa import SesaSampler
from configs.samplers import ParallelSettings, SamplerSettings, SequentialSettings, SesaSettings

SAMPLERS: dict[type[Any], Callable[[Any], Sampler]] = {
    ParallelSettings: lambda settings: ParallelSampler(settings.group_size),
    SequentialSettings: SequentialSampler,
    SesaSettings: SesaSampler,
}


def build_sampler(settings: SamplerSettings) -> Sampler:
    return SAMPLERS[type(settings)](settings)
