"""What an episode leaves behind: the records that cross from actors to the learner.

Loads without torch. Token ids, log-probs and policy versions are recorded when sampled and never rebuilt from text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class Verdict(StrEnum):
    """How an episode ended. `FAILED` (a crashed environment or grader) is never a wrong answer."""

    SOLVED = "solved"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"
    FAILED = "failed"


class Role(StrEnum):
    """Who wrote a segment; only `ANSWER` and `SKETCH` were sampled by the policy."""

    PROMPT = "prompt"
    SKETCH = "sketch"
    ANSWER = "answer"
    OBSERVATION = "observation"


SAMPLED_ROLES = frozenset({Role.SKETCH, Role.ANSWER})


class Stream(StrEnum):
    """Why a token is trained. The loss is normalised inside each stream."""

    SOLUTION = "solution"
    SKETCH = "sketch"
    BRANCH = "branch"


@dataclass(frozen=True, slots=True)
class Ticket:
    """One prompt to sample: a pure function of run seed and index (`orchestration.tickets`).

    `seed` fixes the episode; `attempt` counts from 0 and changes nothing of the episode.
    """

    index: int
    env: str
    seed: int
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens by one author.

    token_ids: (n,). behaviour_logprobs: (n,) log pi(token | everything before) as the engine sampled it, after
    temperature. policy_versions: (n,) number of weight updates behind each token. Both are empty (0,) where the
    policy did not sample. ended: False where a sampled segment was cut at its token limit.
    """

    role: Role
    token_ids: Ints
    behaviour_logprobs: Floats
    policy_versions: Ints
    ended: bool = True

    @property
    def sampled(self) -> bool:
        return self.role in SAMPLED_ROLES


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One sequence of segments in the order the policy saw them, and what came of it.

    `sketch`: index of the sketch that guided it. `parent`, `pivot`: its first `pivot` segments are those of trajectory
    `parent` of the group, token by token; without a parent all are its own. `answer`: canonical form of what was done,
    for counting distinct solutions.
    """

    segments: tuple[Segment, ...]
    verdict: Verdict
    reward: float
    answer: str = ""
    sketch: int | None = None
    parent: int | None = None
    pivot: int | None = None
    cause: str = ""

    @property
    def sampled_tokens(self) -> int:
        """Tokens sampled for it: not those it took over from its parent."""
        return sum(len(s.token_ids) for s in self.segments[self.pivot or 0 :] if s.sampled)

    @property
    def is_solution(self) -> bool:
        """Whether it is an episode, not a list of sketches."""
        return not any(s.role is Role.SKETCH for s in self.segments)


@dataclass(frozen=True, slots=True)
class Credit:
    """Sampled segments [first, last) of a row's trajectory earn `reward`, compared inside `baseline` of `stream`.

    `weight` multiplies their share of the stream's loss (SESA's plain and guided updates of one solution).
    `advantage`: what the sampler says they are worth, then nothing is compared (TreeRL's values of subtrees).
    """

    first: int
    last: int
    stream: Stream
    baseline: str
    reward: float
    weight: float = 1.0
    advantage: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One training sequence: segments from `first` on are the targets of trajectory number `trajectory`.

    context_ids: (c,) replaces the segments before `first` where the training context differs from the sampling one
    (SESA's plain-prompt update); None keeps them. Then behaviour log-probs do not apply unless `importance_cap` asks
    for the truncated weight min(cap, pi_old(y|context) / pi_behaviour(y|sampling context)).
    """

    trajectory: int
    first: int
    credits: tuple[Credit, ...]
    context_ids: Ints | None = None
    importance_cap: float | None = None


@dataclass(frozen=True, slots=True)
class GroupStats:
    """Counts a sampler reports of one group, for metrics."""

    sketches: int = 0
    duplicate_sketches: int = 0
    unparsable_sketches: int = 0
    resampled_sketches: int = 0
    duplicate_answers: int = 0
    env_steps: int = 0

    def __add__(self, other: GroupStats) -> GroupStats:
        return GroupStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class PivotTrial:
    """What came of resampling from one state of a failed trajectory.

    parent, pivot: as of the branches. depth: share of the parent's sampled tokens before it, 0 to 1. features: what the
    recoverability model knew of it. branches, solved: judged continuations. gain: their mean reward less the parent's.
    """

    parent: int
    pivot: int
    depth: float
    features: tuple[float, ...]
    branches: int
    solved: int
    gain: float


@dataclass(frozen=True, slots=True)
class Group:
    """All trajectories of one ticket, and the rows to train on. Failed trajectories are in no row."""

    ticket: Ticket
    sampler: str
    trajectories: tuple[Trajectory, ...]
    rows: tuple[Row, ...]
    stats: GroupStats = field(default_factory=GroupStats)
    pivots: tuple[PivotTrial, ...] = ()

    @property
    def oldest_version(self) -> int:
        """Smallest policy version of any sampled token; -1 when nothing was sampled."""
        versions = [s.policy_versions.min() for t in self.trajectories for s in t.segments if len(s.policy_versions)]
        return int(min(versions, default=-1))

    @property
    def sampled_tokens(self) -> int:
        return sum(t.sampled_tokens for t in self.trajectories)

    @property
    def has_signal(self) -> bool:
        """Whether some advantage is not zero: some baseline of some stream holds unequal rewards, or one is given."""
        rewards: dict[tuple[Stream, str], set[float]] = {}
        for credit in (c for row in self.rows for c in row.credits if c.weight):
            if credit.advantage:
                return True
            if credit.advantage is None:
                rewards.setdefault((credit.stream, credit.baseline), set()).add(credit.reward)
        return any(len(values) > 1 for values in rewards.values())


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a demonstration; `trained` marks the assistant turns the warm-up learns."""

    role: str
    content: str
    trained: bool = False


Conversation = tuple[Message, ...]


def no_floats() -> Floats:
    """An empty (0,) float array, for segments the policy did not sample."""
    return np.empty(0, np.float32)


def no_ints() -> Ints:
    """An empty (0,) int array, for segments the policy did not sample."""
    return np.empty(0, np.int32)
