"""Text environments on the gymnasium API: what all of them do alike.

An episode: `reset(seed=...)` returns the first user message; the policy answers; `step(answer)` returns the next user
message. All randomness of an episode comes from its seed. A subclass says what an episode is and how it is written
down, what an action does, what a method sketch is, and how well the episode can be played at all.
"""

from __future__ import annotations

import string
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Text

from configs.environments import TurnSettings
from configs.shown import safe
from envs.protocol import MAX_TEXT, Illegal, Unreadable, read_answer, shown, split_actions
from envs.trajectory import Verdict


class BadEnvironment(ValueError):
    """Settings or a file that allow no episode; one line that names the key, or the file and line."""

    def __init__(self, message: str) -> None:
        super().__init__(safe(message))


class Failure(RuntimeError):
    """Judging an action broke, which says nothing about the action: the episode ends with verdict FAILED."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `info["outcome"]` of a step says of the episode so far.

    `answer`: a canonical form of all that was done. `cause`: why the verdict is FAILED.
    """

    verdict: Verdict
    answer: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An episode between two turns: `restore` puts it into any environment of the same settings, in any process."""

    seed: int
    state: Any
    rng: Mapping[str, Any]
    turns: int
    done: tuple[str, ...]
    readable: bool
    cause: str


class AnyText(Text):
    """Texts of any characters up to `max_length`; samples are printable ASCII."""

    def __init__(self) -> None:
        super().__init__(MAX_TEXT, min_length=0, charset=string.printable)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length


class TextEnv(gymnasium.Env[str, str]):
    """Base of every environment; `step` never raises on any answer text.

    `state` is an immutable value that holds all of the episode but the counts kept here: subclasses replace it and
    never change it, so that a snapshot is a reference. `done`: canonical forms of the actions made.
    """

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012 - gymnasium's own declaration
    # Else an answer is `A || B`, as many actions as a turn allows.
    one_action_an_answer = False
    state: Any

    def __init__(self, settings: TurnSettings) -> None:
        self.settings = settings
        self.render_mode = "ansi"
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self.seed = 0
        self.turns = 0
        self.done: list[str] = []
        self._readable = False
        self._cause = ""

    # --- what a subclass fills in: the episode -----------------------------------------------------------------------

    @abstractmethod
    def _draw(self) -> Any:
        """The first state of an episode, drawn from `self.np_random`, which `self.seed` has just seeded.

        Raises BadEnvironment when the settings allow none; the search for one is bounded.
        """

    @abstractmethod
    def _act(self, word: str) -> tuple[str, float]:
        """Make one action; returns its canonical form and its reward.

        Raises Unreadable (no action at all), Illegal (none that can be made now): then nothing happened. Raises Failure
        when judging it broke.
        """

    @property
    @abstractmethod
    def solved(self) -> bool: ...

    @property
    def lost(self) -> bool:
        """Whether the episode is over and not solved."""
        return False

    def _answer(self) -> str:
        """Canonical form of all that was done, equal for episodes that count as the same solution."""
        return " ".join(self.done)

    def _closing_reward(self) -> float:
        """What an unsolved episode earns at its end."""
        return 0.0

    # --- texts -------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def rules(self) -> str:
        """The system message: rules, legend, actions and the form of an answer."""

    @abstractmethod
    def render(self) -> str:
        """The whole state as text."""

    @abstractmethod
    def _state_text(self) -> str:
        """What changed, told after every turn. The first message is the whole state and this."""

    @abstractmethod
    def _ending(self) -> str:
        """The message after the last turn."""

    def _opening(self) -> str:
        return "\n".join(part for part in (self.render(), self._state_text(), self._left()) if part)

    def _left(self) -> str:
        """Turns left, and actions where they can run out first; nothing in a game of one turn."""
        settings = self.settings
        if settings.max_turns == 1:
            return ""
        turns = _counted(settings.max_turns - self.turns, "turn")
        if settings.max_actions >= settings.max_turns * settings.actions_per_turn:
            return f"{turns} left."
        return f"{turns}, {_counted(settings.max_actions - len(self.done), 'action')} left."

    def check(self) -> None:
        """Try what episodes need beyond the settings. Raises BadEnvironment when it is missing."""

    # --- several solutions of one prompt -----------------------------------------------------------------------------

    def another_attempt(self) -> str:
        """The words behind a solution that ask for a different one; a game of several turns begins anew."""
        return "Another one." if self.settings.max_turns == 1 else f"Another one.\n{self._opening()}"

    def tried(self, answers: Sequence[str]) -> str:
        """The words, appended to the first message, that tell earlier solutions and ask for a different one."""
        return "\nTried: " + "; ".join(answers) + "\nAnother one."

    def several(self, count: int) -> str:
        """The words, appended to the first message, that ask for `count` different answers at once."""
        tag = self.settings.answer_tag
        return f"\nGive {count} different answers, each as <{tag}>...</{tag}>."

    # --- method sketches ---------------------------------------------------------------------------------------------

    @abstractmethod
    def sketch_request(self, number: int) -> str:
        """Stage I: the words that ask for sketch `number` (from 0); those of 0 follow the first message."""

    def sketches_so_far(self, sketches: Sequence[str]) -> str:
        """The words that tell earlier sketches, between the request for the first one and that for the next."""
        return "\nSo far: " + "; ".join(sketches) + "\n"

    @abstractmethod
    def guidance(self, sketch: str) -> str:
        """Stage II: the words, appended to the first message, that ask to follow `sketch` (inserted as it is)."""

    @abstractmethod
    def sketch_key(self, sketch: str) -> str | None:
        """Canonical form of a sketch, equal for sketches that mean the same; None if it cannot be read."""

    # --- how well it can be played -----------------------------------------------------------------------------------

    @property
    def target_count(self) -> int | None:
        """How many right answers episodes of the same first message have in common; None where each has its own."""
        return None

    def ceiling(self) -> float:
        """The best possible chance to solve the episode from here, within the turns and actions that are left."""
        return float(self.solved) if self._is_over() else self._ceiling()

    def oracle(self) -> str | None:
        """An answer (without tags) of the best play from here; None where there is no hope, or nothing left to do."""
        return None if self._is_over() else self._oracle()

    def optimal_length(self) -> int | None:
        """Fewest actions that can solve the episode from here, by luck where luck plays a part; None if none can.

        Turns and actions that are left do not limit it.
        """
        if self.solved or self.lost:
            return 0 if self.solved else None
        return self._optimal_length()

    @abstractmethod
    def _ceiling(self) -> float:
        """`ceiling` of an episode that is not over."""

    @abstractmethod
    def _oracle(self) -> str | None:
        """`oracle` of an episode that is not over."""

    @abstractmethod
    def _optimal_length(self) -> int | None:
        """`optimal_length` of an episode that is neither solved nor lost."""

    @property
    def ceiling_is_exact(self) -> bool:
        """Whether `ceiling` says all there is to say of the episode; else a search gave up and it is a lower bound."""
        return True

    @abstractmethod
    def random_answer(self, rng: np.random.Generator) -> str:
        """A legal answer (without tags) of a policy that knows the rules and nothing else."""

    # --- gymnasium ---------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.seed = int(self.np_random.integers(2**31)) if seed is None else seed
        super().reset(seed=self.seed, options=options)
        self.turns, self.done, self._readable, self._cause = 0, [], False, ""
        self.state = self._draw()
        return self._opening(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._is_over():
            return self._result("It is over.", 0.0)
        self.turns += 1
        reward, complaint = self._make(action)
        if self._is_over():
            reward += 0.0 if self.solved or self._cause else self._closing_reward()
            return self._result("\n".join(filter(None, (complaint, self._ending()))), reward)
        return self._result("\n".join(filter(None, (complaint, self._state_text(), self._left()))), reward)

    def cut(self) -> float:
        """End the episode where it stands, since no other answer fits into the policy's context: its closing reward."""
        reward = 0.0 if self._is_over() else self._closing_reward()
        self.turns = self.settings.max_turns
        return reward

    def _result(self, text: str, reward: float) -> tuple[str, float, bool, bool, dict[str, Any]]:
        terminated = self._is_decided()
        return text, reward, terminated, self._is_over() and not terminated, {"outcome": self._outcome()}

    def _make(self, answer: str) -> tuple[float, str]:
        """Make the actions of an answer up to the first that cannot be made; their reward, and what to say of that."""
        words = self._words(answer)
        if words is None:
            return self.settings.format_penalty, "Unreadable answer."
        reward = 0.0
        room = min(self.settings.actions_per_turn, self.settings.max_actions - len(self.done))
        excess = f"Only the first {room} of {len(words)} actions were made." if len(words) > room else ""
        for word in words[:room]:
            try:
                canonical, earned = self._act(word)
            except (Unreadable, Illegal) as refusal:
                self._readable |= isinstance(refusal, Illegal)
                return reward + self.settings.format_penalty, f"Illegal action {shown(word)}: {refusal}"
            except Failure as failure:
                self._cause = str(failure)
                break
            self._readable = True
            self.done.append(canonical)
            reward += earned
            if self.solved or self.lost:
                break
        return reward, excess

    def _words(self, answer: str) -> list[str] | None:
        """The actions of an answer as they are written; None where no form of answer can be found."""
        said = read_answer(answer, self.settings.answer_tag)
        if not said:
            return None
        words = [said] if self.one_action_an_answer else split_actions(said)
        return words if all(words) else None

    @property
    def actions_left(self) -> int:
        """Actions that can still be made, in the turns that are left."""
        settings = self.settings
        in_turns = (settings.max_turns - self.turns) * settings.actions_per_turn
        return min(settings.max_actions - len(self.done), in_turns)

    def _is_decided(self) -> bool:
        # A game of one turn is decided by its answer, not cut off: there was no other turn to come.
        return self.solved or self.lost or bool(self._cause) or self.settings.max_turns == 1 == self.turns

    def _is_over(self) -> bool:
        out_of_room = self.turns >= self.settings.max_turns or len(self.done) >= self.settings.max_actions
        return out_of_room or self._is_decided()

    def _outcome(self) -> Outcome:
        if self._cause:
            return Outcome(Verdict.FAILED, self._answer(), self._cause)
        if self.solved:
            return Outcome(Verdict.SOLVED, self._answer())
        return Outcome(Verdict.WRONG if self._readable else Verdict.UNPARSABLE, self._answer())

    # --- episodes to go back to --------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The episode as it is now, to be resumed any number of times. It pickles."""
        rng = deepcopy(self.np_random.bit_generator.state)
        return Snapshot(self.seed, self.state, rng, self.turns, tuple(self.done), self._readable, self._cause)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot of an environment of the same settings: the same answers lead to the same end."""
        self.seed, self.state, self.turns, self.done = (
            snapshot.seed,
            snapshot.state,
            snapshot.turns,
            list(snapshot.done),
        )
        self._readable, self._cause = snapshot.readable, snapshot.cause
        # A generator of its own: what is played from here must not move the one another episode draws from.
        generator = np.random.Generator(np.random.PCG64())
        generator.bit_generator.state = deepcopy(snapshot.rng)
        self.np_random = generator


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
