"""A policy's weights under the names of its Hugging Face checkpoint, low-rank adapters merged into what they adapt.

LoRA (arXiv 2106.09685): a linear layer's weight W becomes W + scaling * B A, where scaling is alpha / rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class MergeError(ValueError):
    """An adapter that cannot be merged into the weight it adapts; names the layer and the setting."""


@dataclass(frozen=True, slots=True)
class PlainParameter:
    """One parameter of the checkpoint. parts: the weight itself, and the adapter's A and B where it has one."""

    name: str
    parts: tuple[Any, ...]
    scaling: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole parameter: a partitioned one's own shape is (0,), DeepSpeed keeps the whole one aside."""
        return tuple(getattr(self.parts[0], "ds_shape", self.parts[0].shape))

    def plain(self, parts: Sequence[Tensor]) -> Tensor:
        """The checkpoint's tensor from the whole parts."""
        return parts[0] if len(parts) == 1 else merged(parts[0], parts[1], parts[2], self.scaling)


def merged(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """weight (out, in) + scaling * b (out, rank) @ a (rank, in), worked out in float32, in the weight's dtype."""
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scaling).to(weight.dtype)


def plain_parameters(module: nn.Module) -> list[PlainParameter]:
    """All parameters of the checkpoint in the module's order; tied ones once. Raises MergeError."""
    if not hasattr(module, "peft_config"):
        return [PlainParameter(name, (p,)) for name, p in module.named_parameters()]
    base: Any = module
    base = base.get_base_model()
    adapted = dict(_adapted(base))
    named = [(name, p) for name, p in base.named_parameters() if ".lora_" not in name]
    hidden = adapted.keys() - {name for name, _ in named}
    if hidden:
        raise MergeError(
            f"{', '.join(sorted(map(_plain_name, hidden)))}: tied to another weight, so its adapter cannot be merged: "
            "leave it out of model.lora.targets"
        )
    return [
        PlainParameter(_plain_name(name), (p, *adapted[name][0]), adapted[name][1])
        if name in adapted
        else PlainParameter(_plain_name(name), (p,))
        for name, p in named
    ]


def _adapted(base: nn.Module) -> Iterator[tuple[str, tuple[tuple[Any, Any], float]]]:
    """The name of each adapted weight, its A and B, and their scaling."""
    from peft.tuners.lora import LoraLayer

    for name, layer in base.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if not isinstance(layer.get_base_layer(), nn.Linear) or len(layer.active_adapters) != 1:
            raise MergeError(f"{name}: only one adapter on a linear layer can be merged: see model.lora.targets")
        [adapter] = layer.active_adapters
        pair = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        yield f"{name}.base_layer.weight", (pair, layer.scaling[adapter])


def _plain_name(name: str) -> str:
    return name.replace(".base_layer.", ".")
