"""Scripted conversations for the warm-up of a small policy: plain play, guided play, lists of sketches and solutions.

The policy that learns them is meant to be mediocre and narrow: it knows the rules, the form of an answer and how to
follow a sketch, and leaves to reinforcement learning which play and which sketch is good.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np

from envs.base import Failure, TextEnv
from envs.protocol import spoken
from envs.trajectory import Conversation, Message, Verdict

E = TypeVar("E", bound=TextEnv)


class Script(ABC, Generic[E]):
    """How one environment is played by script. The shares say what a demonstration shows; the rest is plain play."""

    # Following takes more examples than playing; its few careless ones show the same words failing.
    guided_share = 0.5
    sketch_share = 0.08
    guided_skill = 0.95
    sketches_a_list = 8
    # A careless game is cut here: the rest repeats itself and costs training time.
    careless_turns = 3

    @abstractmethod
    def sketches(self, env: E) -> list[str]:
        """Different sketches that an episode can be solved by; empty where there are none."""

    @abstractmethod
    def answers(self, env: E, sketch: str | None, careful: bool, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
        """Thought and answer of each turn, given what `env` shows when it is asked for.

        `sketch`: one of `sketches` to follow, whatever it is worth. Careful play is good; careless play names actions
        without thinking.
        """


class ListScript(Script[E]):
    """A script that also makes lists of different solutions, one asked for after another."""

    @abstractmethod
    def solutions(self, env: E, count: int, skill: float, rng: np.random.Generator) -> list[str]:
        """Up to `count` different answers to one prompt, a share `skill` of them careful."""


def demonstrate(
    env: E, script: Script[E], seed: int, skill: float, list_share: float = 0.0, list_length: int = 6
) -> Conversation:
    """One demonstration, a pure function of its seed; resets `env`. `skill`: share of careful plain play.

    list_share, list_length: share of lists of solutions, where the script makes any, and the solutions in one.

    Guided play follows any sketch, good or bad, so that following is learned apart from preferring. Raises Failure when
    the environment cannot judge.
    """
    first, _ = env.reset(seed=seed)
    rng = np.random.default_rng([seed, 1])
    if list_share and isinstance(script, ListScript) and rng.random() < list_share:
        return _solution_list(env, first, script.solutions(env, list_length, skill, rng))
    kind, sketches = rng.random(), script.sketches(env)
    if sketches and kind < script.sketch_share:
        return _sketch_list(env, first, [sketches[i] for i in rng.permutation(len(sketches))[: script.sketches_a_list]])
    if sketches and kind < script.sketch_share + script.guided_share:
        sketch = sketches[rng.integers(len(sketches))]
        return _game(env, script, first + env.guidance(sketch), sketch, rng.random() < script.guided_skill, rng)
    return _game(env, script, first, None, rng.random() < skill, rng)


def _game(
    env: E, script: Script[E], first: str, sketch: str | None, careful: bool, rng: np.random.Generator
) -> Conversation:
    messages = [Message("system", env.rules), Message("user", first)]
    for turn, (thought, answer) in enumerate(script.answers(env, sketch, careful, rng), start=1):
        said = spoken(env.settings, thought, answer)
        messages.append(Message("assistant", said, trained=True))
        observation, _, terminated, truncated, info = env.step(said)
        if info["outcome"].verdict is Verdict.FAILED:
            raise Failure(f"a demonstration could not be judged: {info['outcome'].cause}")
        if terminated or truncated or not (careful or turn < script.careless_turns):
            break
        messages.append(Message("user", observation))
    return tuple(messages)


def _sketch_list(env: TextEnv, first: str, sketches: list[str]) -> Conversation:
    messages = [Message("system", env.rules)]
    for number, sketch in enumerate(sketches):
        request = env.sketch_request(number)
        messages.append(Message("user", first + request if number == 0 else request))
        messages.append(Message("assistant", sketch, trained=True))
    return tuple(messages)


def _solution_list(env: TextEnv, first: str, answers: list[str]) -> Conversation:
    messages = [Message("system", env.rules)]
    for number, answer in enumerate(answers):
        messages.append(Message("user", env.another_attempt() if number else first))
        messages.append(Message("assistant", answer, trained=True))
    return tuple(messages)
