"""From the `sampler` group of a config to its sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.rollout import RootSampler, Sampler
from actors.samplers.dde import DdeSampler
from actors.samplers.parallel import ParallelSampler
from actors.samplers.sequential import SequentialSampler
from actors.samplers.sesa import SesaSampler
from actors.samplers.tree import TreeSampler
from actors.samplers.verbalized import VerbalizedSampler
from configs.samplers import (
    DdeSettings,
    ParallelSettings,
    SamplerSettings,
    SequentialSettings,
    SesaSettings,
    TreeSettings,
    VerbalizedSettings,
)

# What DDE can go on from.
ROOTS: dict[type[Any], Callable[[Any], RootSampler]] = {
    ParallelSettings: lambda settings: ParallelSampler(settings.group_size),
    SesaSettings: SesaSampler,
}
SAMPLERS: dict[type[Any], Callable[[Any], Sampler]] = {
    **ROOTS,
    SequentialSettings: SequentialSampler,
    VerbalizedSettings: VerbalizedSampler,
    TreeSettings: TreeSampler,
    DdeSettings: lambda settings: DdeSampler(settings, ROOTS[type(settings.root)](settings.root)),
}


def build_sampler(settings: SamplerSettings) -> Sampler:
    return SAMPLERS[type(settings)](settings)
