"""The learner's line to the rollout actors while weights change hands: one message to each, with a time limit."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

# For the word that an actor has died, once the wire is broken: it takes Ray seconds, and those who lost the wire by it
# say so at once.
GRACE_S = 8.0
LOOK_S = 0.2
LATER_S = 1.0  # rank 0 sees who has come to join, and says who has not before all are late
JOIN = "join the weight group"


class WeightTransferError(RuntimeError):
    """A broadcast did not reach every actor whole; names who was waited for. actors: their numbers in the group."""

    def __init__(self, text: str, actors: Iterable[int] = ()) -> None:
        super().__init__(text)
        self.actors = tuple(sorted(set(actors)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.actors)


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
    `actors`: by the numbers they are called in errors. `version` is set before a send; `received` holds the actors'
    answers after it.
    """

    def __init__(self, actors: Mapping[int, ActorHandle], workers_per_actor: int, timeout_s: float) -> None:
        self._numbers, self._actors = list(actors), list(actors.values())
        self._workers, self._timeout_s = workers_per_actor, timeout_s
        self._calls: list[Any] = []
        self._began = 0.0
        self.version = 0
        self.received: list[Received] = []

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        first = init_info["rank_offset"]
        infos = [{**init_info, "rank_offset": first + i * self._workers} for i in range(len(self._actors))]
        calls = [a.init_weight_transfer_engine.remote(info) for a, info in zip(self._actors, infos, strict=True)]
        self._answers(JOIN, calls, self._timeout_s + LATER_S)

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.begin(update_info)
        self.end()

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...

    def begin(self, update_info: dict[str, Any]) -> None:
        """Let every actor take the weights that follow; `end` waits for them."""
        self._began = time.monotonic()
        self._calls = [actor.update_weights.remote(update_info, self.version) for actor in self._actors]

    def check(self) -> None:
        """Raise WeightTransferError if an actor has given up already: the others would wait for it in vain."""
        done, _ = ray.wait(self._calls, num_returns=len(self._calls), timeout=0)
        self._results("take the weights", done, self._calls)

    def end(self) -> None:
        self.received = self._answers("take the weights", self._calls, self._timeout_s)

    def blame(self) -> None:
        """Raise WeightTransferError naming who has not taken the weights; for a wire that broke or ran out of time."""
        if not self._calls:  # nobody was asked yet
            return
        done, late = self._until_one_died(self._calls)
        self._results("take the weights", done, self._calls)
        numbers = self._numbers_of(late, self._calls)
        if numbers and time.monotonic() - self._began >= self._timeout_s:
            raise self.late("take the weights", numbers)
        if numbers:
            raise WeightTransferError(f"rollout actor {_listed(numbers)} did not take the weights", numbers)

    def who_stays_late(self, error: WeightTransferError) -> WeightTransferError:
        """Of several that were late, those who are so after the others were let go: these only waited for them.

        All of them where all answer then, as an engine does of which one worker of several hangs.
        """
        if len(error.actors) < 2:
            return error
        _, late = ray.wait(self._calls, num_returns=len(self._calls), timeout=GRACE_S)
        numbers = self._numbers_of(late, self._calls)
        return self.late("take the weights", numbers) if numbers else error

    def actor_of(self, group_rank: int) -> int:
        """The actor whose engine has this place in the group."""
        return self._numbers[(group_rank - 1) // self._workers]

    def late(self, what: str, actors: Iterable[int]) -> WeightTransferError:
        late = sorted(set(actors))
        text = f"rollout actor {_listed(late)} did not {what} within {self._timeout_s:g} s (sync.timeout_s)"
        return WeightTransferError(text, late)

    def _answers(self, what: str, calls: list[Any], wait_s: float) -> list[Any]:
        until = time.monotonic() + wait_s
        while True:
            done, late = ray.wait(calls, num_returns=len(calls), timeout=min(LOOK_S, wait_s))
            if not late or time.monotonic() > until or _gathered(done, calls)[1]:
                break
        answers = self._results(what, done, calls)  # an actor that failed is the cause, the late ones wait for it
        if late:
            raise self.late(what, self._numbers_of(late, calls))
        return answers

    def _results(self, what: str, done: Sequence[Any], calls: Sequence[Any]) -> list[Any]:
        """What the calls that are done returned, in the actors' order."""
        results, errors = _gathered(done, calls)
        if errors and not any(isinstance(error, RayActorError) for _, error in errors):
            _, errors = _gathered(self._until_one_died(calls)[0], calls)
        if errors:
            # An actor that died is the cause of the errors that others got on the wire.
            i, first = min(errors, key=lambda one: (not isinstance(one[1], RayActorError), one[0]))
            cause = [line.strip() for line in str(first).splitlines() if line.strip()][-1]
            number = self._numbers[i]
            raise WeightTransferError(f"rollout actor {number} failed to {what}: {cause}", [number]) from first
        return results

    def _until_one_died(self, calls: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Wait until an actor has died or all have answered, GRACE_S at most; the calls that are done, and the rest."""
        until = time.monotonic() + GRACE_S
        while True:
            done, late = ray.wait(list(calls), num_returns=len(calls), timeout=LOOK_S)
            died = any(isinstance(error, RayActorError) for _, error in _gathered(done, calls)[1])
            if not late or died or time.monotonic() > until:
                return done, late

    def _numbers_of(self, some: Sequence[Any], calls: Sequence[Any]) -> list[int]:
        return [number for number, call in zip(self._numbers, calls, strict=True) if call in some]


def _gathered(done: Sequence[Any], calls: Sequence[Any]) -> tuple[list[Any], list[tuple[int, RayError]]]:
    """What the calls that are done returned, and the errors of others by their place."""
    results, errors = [], []
    for i, call in enumerate(calls):
        if call in done:
            try:
                results.append(ray.get(call))
            except RayError as error:
                errors.append((i, error))
    return results, errors


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
