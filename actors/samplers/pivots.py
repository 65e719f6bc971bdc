"""Where a failed trajectory can be taken up again, and which of these states is its pivot.

DEEP-GRPO (arXiv 2602.14169) draws it from Q(t), proportional to P(success | features of t) * depth_t ** gamma.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from actors.episode import Episode
from actors.samplers.recoverability import Array, Recoverability
from configs.samplers import DdeSettings
from envs.trajectory import Ints, Segment, no_floats

# A sentence's last sign before a blank, with the quotes and brackets it closes, or the end of a line. A run of signs is
# looked at from its beginning alone: from each of its signs, a thousand dots would take a million steps.
SENTENCE_END = re.compile(r"""(?<![.!?])[.!?]++["')\]]*+(?:\n+|(?=[^\S\n]))|\n+""")

Place = tuple[int, int]  # segment, and how many of its tokens come before
Pieces = Callable[[Ints], list[str]]  # what each of the tokens (n,) says


@dataclass(frozen=True, slots=True)
class Candidate:
    """A state to resample from: before token `offset` of the answer in `segment`.

    depth: sampled tokens before it, as a share of all the trajectory's; 0 is the root. surprise: mean
    -behaviour log-prob of the sampled tokens since the candidate before, in nats; 0 at the root. progress: reward
    earned until then.
    """

    segment: int
    offset: int
    depth: float
    surprise: float
    progress: float

    def features(self, settings: DdeSettings) -> tuple[float, ...]:
        """What recoverability is predicted from."""
        return (self.depth, self.surprise, self.progress)[: settings.feature_count]


def candidates_of(episode: Episode, settings: DdeSettings, pieces: Pieces) -> tuple[Candidate, ...]:
    """The candidates of an episode whose turns were kept, the root first, in their order; none if nothing was sampled.

    The end of the trajectory is none: nothing would be resampled.
    """
    segments = episode.trajectory.segments
    before = dict(_sampled_before(segments))
    logprobs = np.concatenate([s.behaviour_logprobs for s in segments if s.sampled] or [no_floats()])
    total = len(logprobs)
    found: list[Candidate] = []
    previous = 0
    for segment, offset in _places(segments, before, settings, pieces):
        position = before[segment] + offset
        since = logprobs[previous:position]
        surprise = -float(since.mean(dtype=np.float64)) if len(since) else 0.0
        reward = episode.turn_of(segment).reward
        found.append(Candidate(segment, offset, position / total, surprise, reward))
        previous = position
    return tuple(found)


def distribution(candidates: Sequence[Candidate], model: Recoverability, settings: DdeSettings) -> Array:
    """Q (n,) over candidates. Where no utility is above zero, as of a root alone, the root is the pivot."""
    chances = model.probabilities(np.array([c.features(settings) for c in candidates]))
    utility = chances * np.array([c.depth for c in candidates]) ** settings.gamma
    total = utility.sum()
    return utility / total if total > 0 else np.eye(len(candidates))[0]


def draw(
    candidates: Sequence[Candidate], model: Recoverability, settings: DdeSettings, rng: np.random.Generator
) -> Candidate:
    """The pivot by rule `learned`, `random` (all candidates but the root alike) or `root`."""
    if settings.rule == "root" or len(candidates) == 1:
        return candidates[0]
    if settings.rule == "random":
        return candidates[int(rng.integers(1, len(candidates)))]
    return candidates[int(rng.choice(len(candidates), p=distribution(candidates, model, settings)))]


def _places(segments: Sequence[Segment], before: dict[int, int], settings: DdeSettings, pieces: Pieces) -> list[Place]:
    places = {(segment, 0) for segment in before if len(segments[segment].token_ids)}
    for segment in before if settings.candidates != "turns" else ():
        token_ids = segments[segment].token_ids
        # Counted along the whole trajectory, so that long answers are not cut differently from many short ones.
        regular = range(-before[segment] % settings.segment_tokens, len(token_ids), settings.segment_tokens)
        inside: Iterable[int] = sentence_ends(pieces(token_ids)) if settings.candidates == "sentences" else regular
        places |= {(segment, offset) for offset in inside if 0 < offset < len(token_ids)}
    return sorted(places)


def sentence_ends(pieces: Sequence[str]) -> Iterator[int]:
    """How many tokens there are until each sentence's end, by what the tokens say one by one."""
    ends = list(accumulate(map(len, pieces)))
    for found in SENTENCE_END.finditer("".join(pieces)):
        yield bisect_left(ends, found.end()) + 1


def _sampled_before(segments: Sequence[Segment]) -> Iterator[Place]:
    """(segment, sampled tokens before it) of each sampled segment."""
    count = 0
    for index, segment in enumerate(segments):
        if segment.sampled:
            yield index, count
            count += len(segment.token_ids)
