"""What the simulated actors and the simulated learner do: one set of settings for every number of actors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from configs.base import Settings
from configs.load import ConfigError, explained, read_mapping
from configs.schema import RunConfig


class Load(Settings):
    """Times are real: the clock of fewer actors runs faster, so that all of them together offer the same load."""

    tickets: PositiveInt = Field(100_000, description="groups trained for each number of actors")
    tickets_per_s: PositiveFloat = Field(
        256.0, description="that all actors together can sample, whatever their number"
    )
    prompts_in_flight: PositiveInt = Field(2, description="tickets one actor works on at once")
    latency_sigma: float = Field(0.5, ge=0, le=3, description="of the log of a ticket's seconds a token")
    trajectories: int = Field(8, ge=2, description="of a group")
    tokens_median: PositiveInt = Field(1000, description="of a trajectory")
    tokens_sigma: float = Field(0.3, ge=0, le=2, description="of the log of a group's tokens a trajectory")
    filtered_share: float = Field(0.1, ge=0, lt=1, description="of attempts whose group has no signal")
    failed_share: float = Field(0.01, ge=0, lt=1, description="of attempts that fail")
    groups_per_update: PositiveInt = Field(1024, description="of the learner")
    learner_speed: PositiveFloat = Field(1.0, description="groups the learner can train, over those it can be given")
    update_sigma: float = Field(0.2, ge=0, le=3, description="of the log of an update's seconds")
    max_policy_lag: int = Field(2, ge=0, description="updates a group may be behind")
    queue_groups: PositiveInt = Field(2048, description="groups the queue holds")
    queue_mib: PositiveInt = Field(1024, description="MiB the queue holds")
    hosts: PositiveInt = Field(2, description="processes the simulated actors are spread over")
    seed: int = Field(0, ge=0, description="of all draws")

    @model_validator(mode="after")
    def _some_are_trained(self) -> Load:
        if self.filtered_share + self.failed_share >= 1:
            raise ValueError(
                f"filtered_share ({self.filtered_share:g}) and failed_share ({self.failed_share:g}) leave no group to "
                "train: they must add up to less than 1"
            )
        if self.queue_groups < self.groups_per_update:
            raise ValueError(
                f"queue_groups ({self.queue_groups}) must be at least groups_per_update ({self.groups_per_update}), or "
                "no batch ever fills"
            )
        return self

    @property
    def updates(self) -> int:
        return -(-self.tickets // self.groups_per_update)

    @property
    def update_s(self) -> float:
        """Median seconds of an update."""
        queued_per_s = self.tickets_per_s * (1 - self.filtered_share - self.failed_share)
        return self.groups_per_update / queued_per_s / self.learner_speed

    def latency_s(self, actors: int) -> float:
        """Mean seconds of a ticket at an actor."""
        return actors * self.prompts_in_flight / self.tickets_per_s

    def run_config(self, actors: int) -> RunConfig:
        """Of a run with so many actors; no checkpoints, evaluations and samples."""
        return RunConfig.model_validate(
            {
                "run": {"updates": self.updates, "seed": self.seed},
                "rollout": {"actors": actors, "prompts_in_flight": self.prompts_in_flight},
                "queue": {
                    "max_groups": self.queue_groups, "max_mib": self.queue_mib, "max_policy_lag": self.max_policy_lag,
                },
                "grpo": {"groups_per_update": self.groups_per_update},
                "checkpoint": {"every": 0},
                "observe": {"console": False, "sample_every": 0, "ray_metrics": False, "tensorboard": False},
            }
        )  # fmt: skip


def load_from(path: Path | None, overrides: Sequence[str]) -> Load:
    """The settings of a YAML file, with `key=value` put in. Raises ConfigError with all that is wrong."""
    data, problems = read_mapping(path) if path is not None else ({}, [])
    if data is None:
        raise ConfigError(problems)
    sources: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            problems.append(f"{override}: expected key=value, such as tickets=10000")
            continue
        data[key], sources[key] = _value(text), f"override {override}"
    try:
        load = Load.model_validate(data)
    except ValidationError as error:
        problems += explained(error, lambda details: [_line(details, sources, path)])
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return load


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # which no setting takes: it is refused by its name


def _line(details: Any, sources: dict[str, str], path: Path | None) -> str:
    key = ".".join(map(str, details["loc"]))
    said = f"{key}: {details['msg']}" if key else str(details["msg"])
    if details["type"] == "extra_forbidden":
        said = f"{key}: no such setting; there are {', '.join(Load.model_fields)}"
    return f"{sources.get(key, path or 'load')}: {said}"
