"""The learner's weights as vLLM's senders read them: one whole parameter after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer import ParamMeta, WeightSource

from learner.gather import gathered_parameters
from learner.merge import plain_parameters


class Zero3Source(WeightSource):
    """The parameters of a ZeRO-3 module under their Hugging Face names, whole, in the wire's dtype.

    lasting: each tensor is its own and finished, for a sender that collects many of them on CUDA streams in turn before
    it copies any. everywhere: all ranks get them, not rank 0 alone. `seconds`: spent on making the last pass's tensors.
    """

    def __init__(
        self, module: nn.Module, wire_dtype: torch.dtype, *, lasting: bool = False, everywhere: bool = False
    ) -> None:
        self._module, self._wire_dtype = module, wire_dtype
        self._lasting, self._everywhere = lasting, everywhere
        self.seconds = 0.0

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(p.name, self._wire_dtype, p.shape) for p in plain_parameters(self._module)]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        pairs, self.seconds = gathered_parameters(self._module, self._wire_dtype, self._everywhere), 0.0
        while True:
            began = time.monotonic()
            pair = next(pairs, None)
            if pair is not None and self._lasting:
                pair = pair[0], pair[1].clone()
                if pair[1].is_cuda:
                    torch.cuda.current_stream().synchronize()
            self.seconds += time.monotonic() - began
            if pair is None:
                return
            yield pair
