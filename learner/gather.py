"""Whole parameters out of a ZeRO-3 module, a layer at a time: every rank must iterate in lockstep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn


def gathered_parameters(module: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor in `dtype`) of every parameter. Gathering a layer at once is faster than one by one."""
    for layer in by_layer(module.named_parameters()):
        with deepspeed.zero.GatheredParameters([p for _, p in layer]):
            for name, parameter in layer:
                yield name, parameter.detach().to(dtype)


def by_layer(named: Iterable[tuple[str, nn.Parameter]]) -> list[list[tuple[str, Any]]]:
    """Parameters, with what ZeRO-3 hangs on them, by their first three name parts ("model.layers.3"), in order."""
    layers: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for name, parameter in named:
        layers[".".join(name.split(".")[:3])].append((name, parameter))
    return list(layers.values())
