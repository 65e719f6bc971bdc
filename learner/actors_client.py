"""The learner's line to the rollout actors while weights change hands: one message to each, with a time limit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

GRACE_S = 1.0  # for the word that an actor has died, once the wire is broken
JOIN = "join the weight group"


class WeightTransferError(RuntimeError):
    """A broadcast did not reach every actor whole; names who was waited for."""


class Received(Protocol):
    """An actor's answer. Seconds: until its engine stood ready, and loading. checksum: of its bytes, if asked for."""

    @property
    def pause_s(self) -> float: ...
    @property
    def load_s(self) -> float: ...
    @property
    def checksum(self) -> int | None: ...


class ActorsClient:
    """vLLM's control calls for independent engines, each with its own place in the group.

    vLLM asks for a start, an update and a finish; an actor does all three on one message, between two engine steps.
    `version` is set before a send; `received` holds the actors' answers after it.
    """

    def __init__(self, actors: Sequence[ActorHandle], workers_per_actor: int, timeout_s: float) -> None:
        self._actors, self._workers, self._timeout_s = actors, workers_per_actor, timeout_s
        self._calls: list[Any] = []
        self.version = 0
        self.received: list[Received] = []

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        first = init_info["rank_offset"]
        infos = [{**init_info, "rank_offset": first + i * self._workers} for i in range(len(self._actors))]
        calls = [a.init_weight_transfer_engine.remote(info) for a, info in zip(self._actors, infos, strict=True)]
        self._answers(JOIN, calls, self._timeout_s)

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.begin(update_info)
        self.end()

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...

    def begin(self, update_info: dict[str, Any]) -> None:
        """Let every actor take the weights that follow; `end` waits for them."""
        self._calls = [actor.update_weights.remote(update_info, self.version) for actor in self._actors]

    def check(self) -> None:
        """Raise WeightTransferError if an actor has given up already: the others would wait for it in vain."""
        done, _ = ray.wait(self._calls, num_returns=len(self._calls), timeout=0)
        self._results("take the weights", done, self._calls)

    def end(self) -> None:
        self.received = self._answers("take the weights", self._calls, self._timeout_s)

    def blame(self) -> None:
        """Raise WeightTransferError naming who has not taken the weights; for a wire that broke or ran out of time."""
        self._answers("take the weights", self._calls, GRACE_S)

    def actor_of(self, group_rank: int) -> int:
        """The actor whose engine has this place in the group."""
        return (group_rank - 1) // self._workers

    def late(self, what: str, actors: Iterable[int]) -> WeightTransferError:
        names = ", ".join(map(str, sorted(set(actors))))
        return WeightTransferError(
            f"rollout actor {names} did not {what} within {self._timeout_s:g} s (sync.timeout_s)"
        )

    def _answers(self, what: str, calls: list[Any], wait_s: float) -> list[Any]:
        done, late = ray.wait(calls, num_returns=len(calls), timeout=wait_s)
        answers = self._results(what, done, calls)  # an actor that failed is the cause, the late ones wait for it
        if late:
            raise self.late(what, [i for i, call in enumerate(calls) if call in late])
        return answers

    def _results(self, what: str, done: Sequence[Any], calls: Sequence[Any]) -> list[Any]:
        """What the calls that are done returned, in the actors' order."""
        results, errors = [], []
        for i, call in enumerate(calls):
            if call in done:
                try:
                    results.append(ray.get(call))
                except RayError as error:
                    errors.append((not isinstance(error, RayActorError), i, error))
        if errors:
            # An actor that died is the cause of the errors that others got on the wire.
            _, i, first = min(errors, key=lambda one: one[:2])
            cause = [line.strip() for line in str(first).splitlines() if line.strip()][-1]
            raise WeightTransferError(f"rollout actor {i} failed to {what}: {cause}") from first
        return results
