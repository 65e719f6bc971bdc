"""What a sampler may do with one ticket: ask the policy, talk to the environment, play an episode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from actors.chat import MARK, Chat, Frame
from actors.engine import Completion
from actors.env_workers import EnvWorkers
from configs.schema import RunConfig
from configs.seeds import derive_seed
from envs.base import Outcome, TextEnv
from envs.trajectory import Group, Ints, Role, Segment, Ticket, Trajectory, Verdict, no_floats, no_ints

T = TypeVar("T")


class Policy(Protocol):
    """The seam to the engine; tests put a scripted policy here."""

    async def sample(self, context_ids: Ints, max_tokens: int, seed: int) -> Completion | None: ...


class Sampler(Protocol):
    """An exploration method: how one ticket becomes a group. A new method is a new file with one of these."""

    async def sample_group(self, rollout: Rollout) -> Group: ...


class EnvironmentFailure(RuntimeError):
    """The environment raised or did not answer in time: the episode failed, which is no verdict on the policy."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all tickets of one actor share. `make_env` returns a fresh environment; `workers` runs its calls."""

    config: RunConfig
    chat: Chat
    policy: Policy
    make_env: Callable[[], TextEnv]
    workers: EnvWorkers


class Rollout:
    """One ticket being sampled. Randomness comes from (run seed, ticket index, purpose)."""

    def __init__(self, ticket: Ticket, shared: Shared) -> None:
        self.ticket = ticket
        self.env_steps = 0
        self.chat = shared.chat
        self._shared = shared

    async def start(self) -> None:
        """Reset an environment to the ticket's episode to learn its prompt. Raises EnvironmentFailure."""
        self.env, self.first_message = await self._new_episode()

    def opening(self, words: str = "") -> Ints:
        """Tokens (n,) of rules, first message and `words` behind it."""
        return self.chat.opening(self.env.rules, self.first_message + words)

    def guided_frame(self) -> Frame:
        """The opening of stage II, to be put around the tokens of a sketch."""
        return self.chat.opening_frame(self.env.rules, self.first_message + self.env.guidance(MARK))

    async def sample(self, context_ids: Ints, max_tokens: int, purpose: str) -> Completion | None:
        seed = derive_seed(self._shared.config.run.seed, self.ticket.index, purpose)
        return await self._shared.policy.sample(context_ids, max_tokens, seed)

    async def play(self, opening_ids: Ints, purpose: str, sketch: int | None = None) -> Trajectory:
        """Play the episode to its end. A failing environment gives verdict FAILED and its cause."""
        segments, reward, outcome = [given(Role.PROMPT, opening_ids)], 0.0, Outcome(Verdict.UNPARSABLE, "")
        try:
            env, _ = await self._new_episode()
            over = False
            while not over:
                context_ids = np.concatenate([s.token_ids for s in segments])
                completion = await self.sample(
                    context_ids, self._shared.config.rollout.tokens_per_turn, f"{purpose}/{len(segments)}"
                )
                if completion is None:
                    reward += await self._env_call(env.cut)
                    break  # no room for another answer: the episode stands as it is
                segments.append(sampled(Role.ANSWER, completion))
                message, earned, terminated, truncated, info = await self._env_call(
                    env.step, self.chat.text(completion.token_ids)
                )
                self.env_steps += 1
                reward, outcome, over = reward + float(earned), info["outcome"], terminated or truncated
                if outcome.verdict is Verdict.FAILED:
                    raise EnvironmentFailure(outcome.cause)
                if not over:
                    segments.append(given(Role.OBSERVATION, self.chat.reply(message, completion.ended)))
        except EnvironmentFailure as failure:
            return Trajectory(tuple(segments), Verdict.FAILED, 0.0, sketch=sketch, cause=str(failure))
        return Trajectory(_without_open_turn(segments), outcome.verdict, float(reward), outcome.answer, sketch)

    async def _new_episode(self) -> tuple[TextEnv, str]:
        def begin() -> tuple[TextEnv, str]:
            env = self._shared.make_env()
            return env, env.reset(seed=self.ticket.seed)[0]

        return await self._env_call(begin)

    async def _env_call(self, call: Callable[..., T], *arguments: Any) -> T:
        """Run an environment's call off the event loop, within its time limit. Raises EnvironmentFailure."""
        limit_s = self._shared.config.rollout.env_timeout_s
        try:
            return await self._shared.workers.call(limit_s, call, *arguments)
        except TimeoutError:
            raise EnvironmentFailure(
                f"{self.ticket.env} did not answer within {limit_s:g} s (rollout.env_timeout_s)"
            ) from None
        except Exception as error:
            raise EnvironmentFailure(f"{self.ticket.env} raised {type(error).__name__}: {error}") from error


def given(role: Role, token_ids: Ints) -> Segment:
    """A segment the policy did not sample."""
    return Segment(role, token_ids, no_floats(), no_ints())


def sampled(role: Role, completion: Completion) -> Segment:
    """A segment the policy sampled, with what the engine recorded."""
    return Segment(
        role, completion.token_ids, completion.behaviour_logprobs, completion.policy_versions, completion.ended
    )


def _without_open_turn(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Drop an observation that no answer followed: nothing was sampled behind it."""
    return tuple(segments[:-1] if segments[-1].role is Role.OBSERVATION else segments)
