"""From the `sampler` group of a config to its sampler."""

from __future__ import annotations

from actors.rollout import Sampler
from actors.samplers.parallel import ParallelSampler
from actors.samplers.sesa import SesaSampler
from configs.schema import SamplerSettings, SesaSettings


def build_sampler(settings: SamplerSettings) -> Sampler:
    if isinstance(settings, SesaSettings):
        return SesaSampler(settings)
    return ParallelSampler(settings.group_size)
