"""Exploration methods: one class a method, chosen by `sampler.name`. Papers and formulas: docs/exploration.md."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from configs.base import Settings

Duplicates = Literal["penalty", "resample", "keep"]
SameAs = Literal["environment", "normalised", "exact"]
History = Literal["tokens", "text"]


class ParallelSettings(Settings):
    """Plain GRPO: `group_size` independent solutions of one prompt."""

    name: Literal["parallel"] = "parallel"
    group_size: int = Field(8, ge=2, description="solutions of a prompt, compared with each other")


class SequentialSettings(Settings):
    """One solution after another, each sampled behind the ones before it (arXiv 2510.15502, synthetic task)."""

    name: Literal["sequential"] = "sequential"
    solutions: int = Field(8, ge=2, description="solutions of one list")
    lists: PositiveInt = Field(1, description="independent lists of a prompt")
    baseline: Literal["list", "position"] = Field(
        "list",
        description="a solution is compared with those of its list; or with those of its place in all lists, unless "
        "the lists are all alike",
    )
    history: History = Field("tokens", description="earlier solutions as the same conversation, or told in the prompt")
    train_on: Literal["guided", "plain", "both"] = Field(
        "guided", description="solutions behind the ones before them, under the plain prompt, or both"
    )
    duplicates: Duplicates = Field(
        "penalty",
        description="a repeated solution earns rejected_reward; is sampled again, max_resamples times; or stays",
    )
    duplicate_of: SameAs = Field("environment", description="when two solutions are the same")
    max_resamples: int = Field(
        2, ge=0, description="tries again for one repeated or unreadable solution, with `duplicates: resample`"
    )
    rejected_reward: float = Field(
        -1.0, description="reward of a repeated or unreadable solution; below a miss, or lists collapse"
    )

    @model_validator(mode="after")
    def _places_are_compared_across_lists(self) -> SequentialSettings:
        if self.baseline == "position" and self.lists == 1:
            raise ValueError("baseline (position) compares lists with each other: lists (1) must be at least 2")
        return self


class TemplateSettings(Settings):
    """Words put to the policy instead of the environment's own; empty: those."""

    request: str | None = Field(None, description="behind the first message: asks for the first sketch; {number} is 1")
    another: str | None = Field(None, description="asks for the next sketch; {number} counts the sketches from 1")
    guidance: str | None = Field(None, description="behind the first message: asks to follow {sketch}")

    @model_validator(mode="after")
    def _fields_are_where_they_are_filled_in(self) -> TemplateSettings:
        if self.guidance is not None and self.guidance.count("{sketch}") != 1:
            raise ValueError(f"guidance ({self.guidance}) must hold {{sketch}} once: it is where the sketch goes")
        for name, template in (("request", self.request), ("another", self.another)):
            if template is not None and "{sketch}" in template:
                raise ValueError(f"{name} ({template}) cannot hold {{sketch}}: there is none yet, guidance holds it")
        if self.guidance is not None and "{number}" in self.guidance:
            raise ValueError(f"guidance ({self.guidance}) cannot hold {{number}}: it is the same for all sketches")
        return self


class SesaSettings(Settings):
    """Sequential sketches, then parallel guided solutions (arXiv 2510.15502)."""

    name: Literal["sesa"] = "sesa"
    sketches: int = Field(8, ge=2, description="sketches of a prompt, drafted one after another")
    expansions_per_sketch: PositiveInt = Field(1, description="solutions guided by one sketch")
    plain_solutions: int = Field(
        0, ge=0, description="further solutions of the group, sampled without a sketch; what the policy does by itself"
    )
    sketch_tokens: PositiveInt = Field(24, description="most tokens of one sketch")
    templates: TemplateSettings = TemplateSettings()
    history: History = Field("tokens", description="earlier sketches as the same conversation, or told in the prompt")
    train_on: Literal["plain", "guided", "both"] = Field(
        "plain", description="solutions as answers to the plain prompt, to the prompt with their sketch, or both"
    )
    sketch_credit: Literal["mean", "max"] = Field("mean", description="what a sketch earns of its expansions' rewards")
    duplicates: Duplicates = Field(
        "penalty",
        description="a repeated sketch earns rejected_reward; is drafted again, max_resamples times; or is followed",
    )
    duplicate_of: SameAs = Field("environment", description="when two sketches are the same")
    max_resamples: int = Field(
        2, ge=0, description="tries again for one repeated or unreadable sketch, with `duplicates: resample`"
    )
    rejected_reward: float = Field(
        -1.0, description="reward of a repeated or unreadable sketch; below a miss, or lists collapse"
    )
    plain_weight: float = Field(1.0, ge=0, description="weight of the plain update in the solution stream")
    guided_weight: float = Field(1.0, ge=0, description="weight of the guided update in the solution stream")
    plain_importance_cap: PositiveFloat | None = Field(
        None,
        description="cap of pi_old(y|x) / pi_old(y|x, sketch) in the plain update; empty: no correction (the paper)",
    )


class VerbalizedSettings(Settings):
    """Several candidates asked for in one answer (arXiv 2510.01171), each judged as an answer of its own."""

    name: Literal["verbalized"] = "verbalized"
    responses: int = Field(2, ge=1, description="independent answers to that request")
    candidates: int = Field(4, ge=2, description="candidates asked for in each")


class TreeSettings(Settings):
    """Trees grown by forks at unlikely tokens, advantages from values of subtrees (TreeRL, arXiv 2506.11902)."""

    name: Literal["tree"] = "tree"
    trees: PositiveInt = Field(6, description="independent trees of a prompt")
    rounds: int = Field(1, ge=0, description="times a tree is grown")
    forks: PositiveInt = Field(2, description="tokens a round forks at, the least likely of the tree")
    branches: PositiveInt = Field(2, description="continuations of a fork")

    @model_validator(mode="after")
    def _leaves_are_compared(self) -> TreeSettings:
        if self.trees == 1 and not self.rounds:
            raise ValueError("trees (1) without rounds (0) is one solution, which there is nothing to compare with")
        return self


class DdeSettings(Settings):
    """Dense resampling from pivots deep in failed trajectories (DEEP-GRPO, arXiv 2602.14169)."""

    name: Literal["dde"] = "dde"
    root: Annotated[ParallelSettings | SesaSettings, Field(discriminator="name")] = ParallelSettings()
    branches: PositiveInt = Field(8, description="continuations of a pivot, compared with each other")
    rule: Literal["learned", "random", "root", "oracle"] = Field(
        "learned", description="which state of a failed trajectory is its pivot; oracle asks the environment's solver"
    )
    candidates: Literal["turns", "sentences", "tokens"] = Field(
        "turns", description="where a pivot can be: turns of the environment, ends of sentences, every segment_tokens"
    )
    segment_tokens: PositiveInt = Field(50, description="with candidates: tokens")
    gamma: float = Field(2.0, ge=0, description="a pivot's utility is its recoverability times depth ** gamma")
    features: Literal["depth", "depth+surprise", "depth+surprise+progress"] = Field(
        "depth",
        description="what recoverability is predicted from: depth, mean -log-prob of the segment before, reward so far",
    )
    window: PositiveInt = Field(10_000, description="newest pivots that recoverability is fitted to")
    min_labels: PositiveInt = Field(10, description="pivots before the first fit; both outcomes must be among them")
    refit_every: PositiveInt = Field(1, description="updates between fits")
    max_pivots: PositiveInt | None = Field(None, description="failed trajectories of a prompt resampled from")
    max_extra_tokens: PositiveInt | None = Field(
        None, description="tokens of branches a prompt may cost: another pivot must fit by its parent's length"
    )

    @model_validator(mode="after")
    def _window_holds_the_first_labels(self) -> DdeSettings:
        if self.min_labels > self.window:
            raise ValueError(f"min_labels ({self.min_labels}) must be at most window ({self.window}), or nothing fits")
        return self

    @property
    def feature_count(self) -> int:
        return self.features.count("+") + 1


SamplerSettings = Annotated[
    ParallelSettings | SequentialSettings | SesaSettings | VerbalizedSettings | TreeSettings | DdeSettings,
    Field(discriminator="name"),
]
