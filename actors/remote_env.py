"""An environment that lives in worker processes, under the names it has there.

Nothing that comes back is taken on trust: a reward is a finite number, a message a text of bounded length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, TypeVar

from actors.env_worker import CallFailed
from actors.failures import EnvironmentFailure
from envs.base import Outcome
from envs.trajectory import Verdict
from envs.worker_messages import Call, Reply

T = TypeVar("T")

# Characters. Texts are longer than that by mistake, and the actor tokenises them and keeps them for a while.
LONGEST_TEXT = 2**18
LONGEST_CAUSE = 500  # goes into the ledger


class Workers(Protocol):
    """The seam to the processes; tests put threads here. `run` raises CallFailed."""

    async def run(self, call: Call) -> Reply: ...


@dataclass(frozen=True, slots=True)
class Step:
    """What an answer led to. `over`: no other one is to come."""

    over: bool
    message: str
    reward: float
    outcome: Outcome


class RemoteEnv:
    """The environment of one episode; `TextEnv` says what the calls mean. All of them raise EnvironmentFailure.

    `state`: the episode as the last call left it, from which any worker goes on; for workers alone to read.
    """

    _numbers = count()

    def __init__(self, name: str, workers: Workers, state: bytes = b"") -> None:
        """At that state; without one it has to `begin`."""
        self.rules = self.first_message = self.answer_tag = ""
        self.state = state
        self._name, self._workers = name, workers
        self._episode = next(self._numbers)

    async def begin(self, seed: int) -> None:
        """Go to the first turn of the seed's episode; `rules`, `first_message` and `answer_tag` are known then."""
        self.rules, self.first_message, self.answer_tag = await self._call(_opening, "begin", seed)

    async def step(self, answer: str) -> Step:
        return await self._call(_step, "step", answer)

    async def cut(self) -> float:
        return await self._call(_number, "cut")

    async def ceiling(self) -> float:
        return await self._call(_number, "ceiling")

    async def another_attempt(self) -> str:
        return await self._call(_text, "another_attempt")

    async def tried(self, answers: Sequence[str]) -> str:
        return await self._call(_text, "tried", list(answers))

    async def several(self, count: int) -> str:
        return await self._call(_text, "several", count)

    async def sketch_request(self, number: int) -> str:
        return await self._call(_text, "sketch_request", number)

    async def sketches_so_far(self, sketches: Sequence[str]) -> str:
        return await self._call(_text, "sketches_so_far", list(sketches))

    async def guidance(self, sketch: str) -> str:
        return await self._call(_text, "guidance", sketch)

    async def sketch_key(self, sketch: str) -> str | None:
        return await self._call(lambda value: None if value is None else _text(value), "sketch_key", sketch)

    async def _call(self, read: Callable[[Any], T], name: str, *arguments: Any) -> T:
        """`read` makes the answer of what came back, and raises ValueError where that is none."""
        try:
            reply = await self._workers.run(Call(name, self._episode, self.state, arguments))
            value = read(reply.value)
        except CallFailed as failure:
            raise EnvironmentFailure(f"{self._name} {failure}") from failure
        except ValueError as error:
            raise EnvironmentFailure(f"{self._name} answered {name} with {error}") from error
        if reply.state:
            self.state = reply.state
        return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} where a text belongs")
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"a text of {len(value)} characters, more than {LONGEST_TEXT}")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, float) or not math.isfinite(value):
        raise ValueError(f"{value if isinstance(value, float) else type(value).__name__} where a finite number belongs")
    return value


def _list(value: Any, length: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != length:
        raise ValueError(f"{type(value).__name__} where {length} values belong")
    return value


def _opening(value: Any) -> tuple[str, str, str]:
    rules, message, tag = _list(value, 3)
    return _text(rules), _text(message), _text(tag)


def _step(value: Any) -> Step:
    over, message, reward, verdict, answer, cause = _list(value, 6)
    outcome = Outcome(Verdict(verdict), _text(answer), _text(cause)[:LONGEST_CAUSE])
    return Step(over is True, _text(message), _number(reward), outcome)
