"""What a sampler may do with one ticket: ask the policy, talk to the environment, play an episode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from actors.chat import MARK, Chat, Frame
from actors.engine import Completion
from actors.episode import Episode, Turn, without_open_turn
from actors.failures import EnvironmentFailure
from actors.remote_env import RemoteEnv, Workers
from configs.schema import RunConfig
from configs.seeds import derive_seed
from envs.base import Outcome
from envs.trajectory import Group, Ints, Role, Segment, Ticket, Trajectory, Verdict, no_floats, no_ints


class Policy(Protocol):
    """The seam to the engine; tests put a scripted policy here."""

    async def sample(self, context_ids: Ints, max_tokens: int, seed: int) -> Completion | None: ...


class Sampler(Protocol):
    """An exploration method: how one ticket becomes a group. A new method is a new file with one of these."""

    async def sample_group(self, rollout: Rollout) -> Group: ...


# A group, and the episodes that its trajectories of these numbers are, for a sampler that goes on from them.
Root = tuple[Group, dict[int, Episode]]


class RootSampler(Sampler, Protocol):
    async def sample_root(self, rollout: Rollout) -> Root: ...


@dataclass(frozen=True, slots=True)
class Shared:
    """What all tickets of one actor share. `workers`: where environments live."""

    config: RunConfig
    chat: Chat
    policy: Policy
    workers: Workers


class Rollout:
    """One ticket being sampled. Randomness comes from (run seed, ticket index, purpose)."""

    def __init__(self, ticket: Ticket, shared: Shared) -> None:
        self.ticket = ticket
        self.tokens_per_turn = shared.config.rollout.tokens_per_turn
        self.env_steps = 0
        self.keep_turns = False  # of the episodes played from now on: a sampler that branches asks for them
        self.chat = shared.chat
        self._shared = shared

    async def start(self) -> None:
        """Reset an environment to the ticket's episode to learn its prompt. Raises EnvironmentFailure."""
        self.env = RemoteEnv(self.ticket.env, self._shared.workers)
        await self.env.begin(self.ticket.seed)

    def opening(self, words: str = "") -> Ints:
        """Tokens (n,) of rules, first message and `words` behind it."""
        return self.chat.opening(self.env.rules, self.env.first_message + words)

    def has_room(self, context_ids: Ints, tokens: int) -> bool:
        """Whether that many tokens fit behind a context (n,)."""
        return len(context_ids) + tokens <= self._shared.config.model.max_model_len

    async def guided_frame(self) -> Frame:
        """The opening of stage II, to be put around the tokens of a sketch."""
        return self.chat.opening_frame(self.env.rules, self.env.first_message + await self.env.guidance(MARK))

    def seed(self, purpose: str) -> int:
        return derive_seed(self._shared.config.run.seed, self.ticket.index, purpose)

    async def sample(self, context_ids: Ints, max_tokens: int, purpose: str) -> Completion | None:
        return await self._shared.policy.sample(context_ids, max_tokens, self.seed(purpose))

    async def play(self, opening_ids: Ints, purpose: str, sketch: int | None = None) -> Episode:
        """Play the episode to its end. A failing environment gives verdict FAILED and its cause."""
        begun = Trajectory((given(Role.PROMPT, opening_ids),), Verdict.UNPARSABLE, 0.0, sketch=sketch)
        return await self._go_on(begun, None, purpose)

    async def branch(self, episode: Episode, parent: int, pivot: int, purpose: str) -> Episode:
        """Play on behind the first `pivot` segments of an episode, number `parent` of the group, whose turns were kept.

        The environment goes back to where it was then; an answer that had begun goes on.
        """
        shared = episode.trajectory.segments[:pivot]
        begun = replace(episode.trajectory, segments=shared, answer="", cause="", parent=parent, pivot=pivot)
        return await self._go_on(begun, episode.turn_of(pivot), purpose)

    async def _go_on(self, begun: Trajectory, turn: Turn | None, purpose: str) -> Episode:
        """To the end from what has begun; turn: to go back to, of an episode that is not new."""
        env, over = self.env_at(turn), False
        segments, turns = [*begun.segments], list[Turn]()
        reward, outcome = turn.reward if turn else 0.0, Outcome(Verdict.UNPARSABLE, "")
        said = [s.token_ids for s in segments[turn.segment :]] if turn else []  # of the answer under way
        try:
            while not over:
                if self.keep_turns:
                    turns.append(Turn(len(segments) - len(said), env.state, reward))
                context_ids = np.concatenate([s.token_ids for s in segments])
                room = self.tokens_per_turn - sum(map(len, said))
                completion = await self.sample(context_ids, room, f"{purpose}/{len(segments)}")
                if completion is None:
                    reward += await env.cut()
                    break  # no room for another answer: the episode stands as it is
                segments.append(sampled(Role.ANSWER, completion))
                text = self.chat.text(np.concatenate([*said, completion.token_ids]))
                step = await env.step(text)
                self.env_steps += 1
                said, reward, outcome, over = [], reward + step.reward, step.outcome, step.over
                if outcome.verdict is Verdict.FAILED:
                    raise EnvironmentFailure(outcome.cause)
                if not over:
                    segments.append(given(Role.OBSERVATION, self.chat.reply(step.message, completion.ended)))
        except EnvironmentFailure as failure:
            failed = replace(begun, segments=tuple(segments), verdict=Verdict.FAILED, reward=0.0, cause=str(failure))
            return Episode(failed, tuple(turns))
        ended = replace(
            begun,
            segments=without_open_turn(segments), verdict=outcome.verdict, reward=float(reward), answer=outcome.answer,
        )  # fmt: skip
        return Episode(ended, tuple(turns))

    def env_at(self, turn: Turn | None = None) -> RemoteEnv:
        """An environment of its own at the ticket's episode, from its beginning or as it was in a turn."""
        return RemoteEnv(self.ticket.env, self._shared.workers, (turn or self.env).state)


def given(role: Role, token_ids: Ints) -> Segment:
    """A segment the policy did not sample."""
    return Segment(role, token_ids, no_floats(), no_ints())


def sampled(role: Role, completion: Completion) -> Segment:
    """A segment the policy sampled, with what the engine recorded."""
    return Segment(
        role, completion.token_ids, completion.behaviour_logprobs, completion.policy_versions, completion.ended
    )
