"""Text environments on the gymnasium API, and the one text protocol they share.

An episode: `reset(seed=...)` returns the first user message; the policy answers; `step(answer)` returns the next user
message. All randomness of an episode comes from its seed.
"""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from configs.schema import TurnSettings
from envs.trajectory import Conversation, Verdict

MAX_TEXT = 16384
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `info["outcome"]` of a step says; `answer` is a canonical form of all that was done so far."""

    verdict: Verdict
    answer: str


class TextEnv(gymnasium.Env[str, str]):
    """Base of every environment: rules, turns, answers and the vocabulary of method sketches.

    Subclasses fill in the abstract methods; `reset` and `step` never raise on any answer text.
    """

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012 - gymnasium's own declaration

    def __init__(self, settings: TurnSettings) -> None:
        self.settings = settings
        self.render_mode = "ansi"
        self.observation_space = Text(MAX_TEXT, charset=string.printable)
        self.action_space = Text(MAX_TEXT, min_length=0, charset=string.printable)

    @property
    @abstractmethod
    def rules(self) -> str:
        """The system message: rules, legend, actions and the form of an answer."""

    @abstractmethod
    def sketch_request(self, number: int) -> str:
        """Stage I: the words that ask for sketch `number` (from 0); those of 0 follow the first message."""

    @abstractmethod
    def guidance(self, sketch: str) -> str:
        """Stage II: the words, appended to the first message, that ask to follow `sketch` (inserted as it is)."""

    @abstractmethod
    def sketch_key(self, sketch: str) -> str | None:
        """Canonical form of a sketch, equal for sketches that mean the same; None if it cannot be read."""

    @abstractmethod
    def demonstrate(self, seed: int, skill: float) -> Conversation:
        """A scripted conversation for the warm-up, a pure function of its seed; `skill`: share of careful play."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return self._begin(), {}

    @abstractmethod
    def _begin(self) -> str:
        """Draw a new episode from `self.np_random`; return the first user message."""


def read_actions(answer: str, limit: int) -> list[str] | None:
    """The first `limit` actions of the last `<answer>A || B</answer>`, lower-cased; None if unreadable."""
    found = ANSWER.findall(answer)
    if not found:
        return None
    actions = [part.strip().lower() for part in found[-1].split("||")]
    return actions[:limit] if all(actions) else None
