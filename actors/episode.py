"""A finished episode, and the turns at which it can be taken up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from envs.trajectory import Role, Segment, Trajectory


@dataclass(frozen=True, slots=True)
class Turn:
    """Before an answer: its first segment, the environment as it stands (`RemoteEnv.state`), the reward until then."""

    segment: int
    state: bytes
    reward: float


@dataclass(frozen=True, slots=True)
class Episode:
    """turns: in their order, none unless they were asked for (`Rollout.keep_turns`)."""

    trajectory: Trajectory
    turns: tuple[Turn, ...] = ()

    def turn_of(self, pivot: int) -> Turn:
        """The turn whose answer is under way, or about to begin, behind the first `pivot` segments."""
        return next(turn for turn in reversed(self.turns) if turn.segment <= pivot)

    def cut(self, segment: int, offset: int) -> Episode:
        """The same episode with an answer of n tokens as two segments, of `offset` and n - offset; 0 < offset < n."""
        whole = self.trajectory.segments[segment]
        if not 0 < offset < len(whole.token_ids):
            raise ValueError(f"an answer of {len(whole.token_ids)} tokens cannot be cut at {offset}")
        # Only the second part ended, or was cut at its limit, as the whole did: the first goes on in the second.
        first = _part(whole, slice(None, offset), ended=True)
        parts = (first, _part(whole, slice(offset, None), whole.ended))
        segments = (*self.trajectory.segments[:segment], *parts, *self.trajectory.segments[segment + 1 :])
        turns = tuple(replace(t, segment=t.segment + 1) if t.segment > segment else t for t in self.turns)
        return Episode(replace(self.trajectory, segments=segments), turns)


def _part(segment: Segment, which: slice, ended: bool) -> Segment:
    return Segment(
        segment.role,
        segment.token_ids[which],
        segment.behaviour_logprobs[which],
        segment.policy_versions[which],
        ended,
    )


def without_open_turn(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Drop an observation that no answer followed: nothing was sampled behind it."""
    return tuple(segments[:-1] if segments[-1].role is Role.OBSERVATION else segments)
