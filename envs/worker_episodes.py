"""The episodes of one environment worker: calls on them, by name, with plain arguments and plain answers.

A worker may be killed at any moment and an episode may turn up in another one: every call that changes an episode
returns it whole, and every call brings it along.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from envs.worker_messages import DONE, Call, Reply

if TYPE_CHECKING:
    from envs.base import TextEnv

# Environments kept for the next call of their episode; with more, it is the state a call brings that counts.
MOST_KEPT = 256


def _begin(env: TextEnv, seed: int) -> list[Any]:
    """Rules, first message, the tag around answers."""
    message, _ = env.reset(seed=seed)
    return [env.rules, message, env.settings.answer_tag]


def _step(env: TextEnv, answer: str) -> list[Any]:
    """Whether it is over, message, reward; verdict, answer and cause of the outcome."""
    message, reward, terminated, truncated, info = env.step(answer)
    outcome = info["outcome"]
    verdict = [str(outcome.verdict), outcome.answer, outcome.cause]
    return [bool(terminated or truncated), message, float(reward), *verdict]


# Calls that change an episode.
MOVES: dict[str, Callable[..., Any]] = {"begin": _begin, "step": _step, "cut": lambda env: float(env.cut())}
# Calls that only ask.
QUESTIONS: dict[str, Callable[..., Any]] = {
    "ceiling": lambda env: float(env.ceiling()),
    "sketch_request": lambda env, number: env.sketch_request(number),
    "sketches_so_far": lambda env, sketches: env.sketches_so_far(sketches),
    "sketch_key": lambda env, sketch: env.sketch_key(sketch),
    "guidance": lambda env, sketch: env.guidance(sketch),
    "several": lambda env, count: env.several(count),
    "tried": lambda env, answers: env.tried(answers),
    "another_attempt": lambda env: env.another_attempt(),
}


class Episodes:
    """Each has an environment object of its own, which no other one ever sees."""

    def __init__(self, make_env: Callable[[], TextEnv]) -> None:
        """Makes an environment, for the first episode: what the making of all of them loads is loaded now."""
        self._make_env = make_env
        self._spare: TextEnv | None = make_env()
        self.target_count = self._spare.target_count
        self._kept: OrderedDict[int, tuple[bytes, TextEnv]] = OrderedDict()

    def answer(self, call: Call) -> Reply:
        """Raises whatever the environment raises; then its object is not used again."""
        env = self._new() if call.name == "begin" else self._env_of(call)
        if call.name in QUESTIONS:
            value = QUESTIONS[call.name](env, *call.arguments)
            self._keep(call.episode, call.state, env)
            return Reply(DONE, value)
        value = MOVES[call.name](env, *call.arguments)
        if call.name == "cut" or (call.name == "step" and value[0]):
            return Reply(DONE, value)  # it is over, and its environment is not kept
        state = stored(env)
        self._keep(call.episode, state, env)
        return Reply(DONE, value, state)

    def _env_of(self, call: Call) -> TextEnv:
        """The episode's own object, if it is here and as the actor knows it; else a new one."""
        state, env = self._kept.pop(call.episode, (b"", None))
        if env is None or state != call.state:
            env = self._new()
            env.restore(pickle.loads(call.state))
        return env

    def _keep(self, episode: int, state: bytes, env: TextEnv) -> None:
        self._kept[episode] = state, env
        if len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)

    def _new(self) -> TextEnv:
        env, self._spare = self._spare or self._make_env(), None
        return env


def stored(env: TextEnv) -> bytes:
    """The episode as it is now. Raises TypeError where its state is no plain value."""
    snapshot = env.snapshot()
    try:
        return pickle.dumps(snapshot, pickle.HIGHEST_PROTOCOL)
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(f"the episode's state cannot be pickled ({error}): it must be of plain values") from error
