"""Sampled groups as a reader sees them: a tree of texts, with each token's probability and what it was worth."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.receipt import is_branch
from configs.files import read_file
from configs.load import ConfigError, load_config
from configs.schema import RunConfig
from configs.shown import one_line, redacted
from envs.codec import CodecError, decode_group
from envs.trajectory import Group, PivotTrial, Segment, Trajectory
from learner.rows import credit_advantages, is_trained
from orchestration.policy import present_policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAME = re.compile(r"update-(\d{6,12})\.msgpack")
_MOST_FILE_BYTES = 2**26
_LONGEST_CHARACTER = 8  # tokens that one character may be spread over
_BROKEN = "\N{REPLACEMENT CHARACTER}"


class RolloutsError(ValueError):
    """Samples that cannot be shown; one line that names the file or folder."""


class SampleError(RolloutsError):
    """One of them cannot be."""


@dataclass(frozen=True, slots=True)
class ShownSegment:
    """texts: of each token where the policy sampled it, else of the whole segment. logprobs: of those tokens.

    advantage: what its tokens are trained on, weighted and summed over the rows they are in; None where in none.
    """

    role: str
    texts: list[str]
    logprobs: list[float]
    advantage: float | None
    ended: bool


@dataclass(frozen=True, slots=True)
class ShownTrajectory:
    """segments: from `pivot` on where it has a parent. kind: sketches, solution, branch or continuation (of a list or
    a tree)."""

    kind: str
    segments: list[ShownSegment]
    verdict: str
    reward: float
    answer: str
    cause: str
    sketch: int | None
    parent: int | None
    pivot: int | None


@dataclass(frozen=True, slots=True)
class ShownGroup:
    """update: at which it was kept. version: the policy's that sampled its oldest token."""

    file: str
    update: int
    ticket: int
    env: str
    seed: int
    attempt: int
    sampler: str
    version: int
    trajectories: list[ShownTrajectory]
    pivots: list[PivotTrial]


class Rollouts:
    """The groups a run keeps under samples/, newest first. Raises RolloutsError when there is no run in the folder."""

    def __init__(self, run: Path) -> None:
        self.run = run
        if not (run / "config.yaml").is_file():
            raise RolloutsError(f"{one_line(run)}: no run's folder: it has no config.yaml")
        try:
            self._config = load_config(run / "config.yaml", ())
        except ConfigError as error:
            raise RolloutsError(f"{one_line(run / 'config.yaml')}: {one_line(error)}") from error
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def files(self) -> list[str]:
        """Names, newest first."""
        names = (path.name for path in (self.run / "samples").glob("update-*.msgpack"))
        return sorted((name for name in names if _NAME.fullmatch(name)), key=_update_of, reverse=True)

    def read(self, name: str) -> dict[str, Any]:
        """One of them, ready for JSON. Raises RolloutsError for a name that is none, and a file that cannot be read."""
        if not _NAME.fullmatch(name):
            raise SampleError(f"samples/{one_line(name, 100)}: no name of a sample")
        try:
            group = decode_group(read_file(self.run / "samples" / name, _MOST_FILE_BYTES))
        except (OSError, ValueError, CodecError) as error:
            raise SampleError(f"samples/{name}: {one_line(error)}") from error
        return asdict(shown(group, name, self._config, self._loaded()))

    def newest(self, most_bytes: int, size: Callable[[dict[str, Any]], int]) -> Iterator[dict[str, Any]]:
        """The newest ones that fit into so many bytes together, by `size` of each; what cannot be read is left out."""
        for name in self.files():
            try:
                group = self.read(name)
            except SampleError:
                continue
            if (taken := size(group)) <= most_bytes:
                most_bytes -= taken
                yield group

    def _loaded(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            exported = self.run / "policy"
            try:
                folder = exported if exported.is_dir() else present_policy(self._config)
                self._tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
            except Exception as error:  # transformers raises whatever went wrong in it
                raise RolloutsError(f"{one_line(self.run)}: its tokenizer cannot be had: {one_line(error)}") from error
        return self._tokenizer


def shown(group: Group, file: str, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> ShownGroup:
    """A group as a reader sees it."""
    worth = _worth(group, config)
    trajectories = [
        ShownTrajectory(
            _kind_of(trajectory, group),
            [
                _segment(segment, worth.get((number, place)), tokenizer)
                for place, segment in enumerate(trajectory.segments)
                if place >= (trajectory.pivot or 0)
            ],
            str(trajectory.verdict), round(trajectory.reward, 4), redacted(trajectory.answer),
            redacted(trajectory.cause), trajectory.sketch, trajectory.parent, trajectory.pivot,
        )
        for number, trajectory in enumerate(group.trajectories)
    ]  # fmt: skip
    ticket = group.ticket
    return ShownGroup(
        file, _update_of(file), ticket.index, ticket.env, ticket.seed, ticket.attempt, group.sampler,
        group.oldest_version, trajectories, list(group.pivots),
    )  # fmt: skip


def token_texts(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each token adds to the text, special ones by their names. A character of several tokens is the last."""
    texts: list[str] = []
    before: list[int] = []
    waiting: list[int] = []
    for token in token_ids:
        waiting.append(int(token))
        text = _added(before, waiting, tokenizer)
        if text.endswith(_BROKEN) and len(waiting) < _LONGEST_CHARACTER:
            texts.append("")
            continue
        texts.append(text)
        before, waiting = waiting[-1:], []
    if waiting:
        texts[-1] = _added(before, waiting, tokenizer)
    return texts


def _added(before: list[int], token_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Behind the token before them: alone, some tokenizers leave out the blank a word begins with."""
    start, whole = (str(tokenizer.decode(ids, skip_special_tokens=False)) for ids in (before, [*before, *token_ids]))
    return (
        whole[len(start) :] if whole.startswith(start) else str(tokenizer.decode(token_ids, skip_special_tokens=False))
    )


def _segment(segment: Segment, advantage: float | None, tokenizer: PreTrainedTokenizerBase) -> ShownSegment:
    ids = segment.token_ids.tolist()
    if segment.sampled:
        logprobs = [round(float(value), 3) for value in segment.behaviour_logprobs]
        return ShownSegment(str(segment.role), token_texts(ids, tokenizer), logprobs, advantage, segment.ended)
    return ShownSegment(
        str(segment.role), [redacted(str(tokenizer.decode(ids, skip_special_tokens=True)))], [], None, True
    )


def _worth(group: Group, config: RunConfig) -> dict[tuple[int, int], float]:
    """Advantage times weight by (trajectory, segment), under the configuration the run has now."""
    worth: dict[tuple[int, int], float] = {}
    for place, advantage in credit_advantages([group], config).items():
        if not is_trained([group], place, config):
            continue
        _, r, c = place
        row = group.rows[r]
        credit = row.credits[c]
        for number in range(credit.first, credit.last):
            if group.trajectories[row.trajectory].segments[number].sampled:
                key = (row.trajectory, number)
                worth[key] = round(worth.get(key, 0.0) + credit.weight * advantage, 4)
    return worth


def _kind_of(trajectory: Trajectory, group: Group) -> str:
    if not trajectory.is_solution:
        return "sketches"
    if trajectory.parent is None:
        return "solution"
    return "branch" if is_branch(trajectory, group) else "continuation"


def _update_of(name: str) -> int:
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else 0
