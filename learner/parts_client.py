"""The learner's line to actors on its own GPUs: a weight update in parts, each read by all before the next is made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from learner.actors_client import JOIN, ActorsClient, WeightTransferError


@dataclass(frozen=True, slots=True)
class Taken:
    """An actor's times of an update in parts, in seconds; nothing crosses a wire, so there is no checksum."""

    pause_s: float
    load_s: float
    checksum: None = None


class PartsClient(ActorsClient):
    """vLLM's control calls for engines that read the weights where the learner's ranks hold them (CUDA IPC).

    Who fails or is late ends the update for all, but not before its last part: every rank makes all parts in step, and
    would wait for rank 0. `raise_failure` tells of it afterwards.
    """

    failure: WeightTransferError | None = None
    _until = 0.0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._all(JOIN, "init_weight_transfer_engine", init_info, wait_s=self._timeout_s)

    def start_weight_update(self) -> None:
        self.failure, self._until = None, time.monotonic() + self._timeout_s
        self._pauses, self._loads = self._part("begin_weights"), [0.0] * len(self._actors)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._add(self._part("take_part", update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:  # noqa: ARG002
        self._add(self._part("end_weights", self.version))
        self.received = [Taken(*times) for times in zip(self._pauses, self._loads, strict=True)]

    def raise_failure(self) -> None:
        """Raises WeightTransferError where the last update did not reach every actor."""
        if self.failure is not None:
            raise self.failure

    def _part(self, method: str, *arguments: Any) -> list[float]:
        """Every actor's seconds for a part; nothing is asked of them any more once one has failed."""
        if self.failure is None:
            try:
                return self._all("take the weights", method, *arguments, wait_s=self._until - time.monotonic())
            except WeightTransferError as failure:
                self.failure = failure
        return [0.0] * len(self._actors)

    def _all(self, what: str, method: str, *arguments: Any, wait_s: float) -> list[Any]:
        calls = [getattr(actor, method).remote(*arguments) for actor in self._actors]
        return self._answers(what, calls, max(0.0, wait_s))

    def _add(self, seconds: list[float]) -> None:
        self._loads = [sum(pair) for pair in zip(self._loads, seconds, strict=True)]
