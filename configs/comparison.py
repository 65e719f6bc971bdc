"""What a comparison is: methods x seeds at one budget of generated tokens, read from configs/compare/NAME.yaml.

A mistake is one line that names the key, with the nearest known one; all are reported at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator
from pydantic_core import ErrorDetails

from configs.base import Settings
from configs.load import ConfigError, explained, read_mapping
from configs.problems import did_you_mean, show

# What the comparison itself sets in every run, so that no method can have other values.
FIXED = ("run.name", "run.root", "run.seed", "run.max_tokens")
# What `evaluate.episodes` and `evaluate.samples` say to the judge.
JUDGED_BY = ("eval.episodes", "eval.samples")
START = "start"  # the policy of `base`, in names of files and in tables

Mode = Literal["plain", "guided", "sequential"]
MethodName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class MethodSettings(Settings):
    """One method; in the file also its list of overrides alone."""

    config: str | None = Field(None, min_length=1, description="configuration instead of `base`, relative to this file")
    overrides: list[str] = Field([], description="key=value, put in after those of all methods")
    after: str | None = Field(None, description="method whose policy of the same seed this one starts from")

    @model_validator(mode="before")
    @classmethod
    def _a_list_is_overrides(cls, value: Any) -> Any:
        return {"overrides": value} if isinstance(value, list) else value


class JudgeSettings(Settings):
    """The final judge: `python -m orchestration.evaluate` with `base` and the overrides for every method.

    So it is the same for all policies, whatever their own methods say.
    """

    modes: list[Mode] = Field(["plain"], min_length=1)
    samples: PositiveInt = Field(64, description="samples of an episode; also the largest k of pass@k")
    episodes: PositiveInt = Field(64, description="held-out episodes")
    overrides: list[str] = Field([], description="key=value, for the judge alone, such as the sampler of its lists")


class ComparisonConfig(Settings):
    base: str = Field(min_length=1, description="configuration of the methods without one, relative to this file")
    tokens: PositiveInt = Field(description="generated tokens each run may spend on training (run.max_tokens)")
    seeds: list[NonNegativeInt] = Field(min_length=1)
    overrides: list[str] = Field([], description="key=value, for every method")
    methods: dict[MethodName, MethodSettings] = Field(
        min_length=1, description="the first is what others are set against"
    )
    evaluate: JudgeSettings | None = Field(None, description="empty: the runs' own evaluations only")

    @model_validator(mode="after")
    def _seeds_and_overrides_are_plain(self) -> ComparisonConfig:
        wrong = [] if len(set(self.seeds)) == len(self.seeds) else [f"seeds ({show(self.seeds)}) name one twice"]
        wrong += _refused("overrides", self.overrides, FIXED)
        if self.evaluate is not None:
            wrong += _refused("evaluate.overrides", self.evaluate.overrides, (*FIXED, *JUDGED_BY))
            if len(set(self.evaluate.modes)) < len(self.evaluate.modes):
                wrong.append(f"evaluate.modes ({show(self.evaluate.modes)}) name one twice")
        if START in self.methods:
            wrong.append(f"methods.{START}: is the name of the policy of `base`, choose another one")
        for name, method in self.methods.items():
            fixed = FIXED if method.after is None else (*FIXED, "model.path")
            wrong += _refused(f"methods.{name}.overrides", method.overrides, fixed)
            wrong += self._wrong_after(name)
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def _wrong_after(self, name: str) -> list[str]:
        """Why the policies that `name` builds on cannot be had: an unknown method, or a circle of them."""
        chain = [name]
        while (before := self.methods[chain[-1]].after) is not None:
            if before not in self.methods:
                near = did_you_mean(difflib.get_close_matches(before, self.methods, n=1))
                return [f"methods.{name}.after: no method {show(before)}{near}"] if chain == [name] else []
            chain.append(before)
            if before in chain[:-1]:
                circle = " -> ".join(chain)
                return [f"methods.{name}.after: {circle} is a circle"] if before == name else []
        return []

    def in_order(self) -> list[str]:
        """The methods, each behind the one it builds on, else as they stand in the file."""
        ordered: list[str] = []
        while len(ordered) < len(self.methods):
            ordered += [n for n, m in self.methods.items() if n not in ordered and m.after in (None, *ordered)]
        return ordered


def load_comparison(path: Path) -> ComparisonConfig:
    """The comparison in `path`. Raises ConfigError with every problem of the file; runs are not looked at here."""
    data, problems = read_mapping(path)
    if data is None:
        raise ConfigError(problems)
    try:
        comparison = ComparisonConfig.model_validate(data, strict=True)
    except ValidationError as error:
        problems += explained(error, lambda details: _explain(details, path))
    if problems:
        raise ConfigError(problems)
    return comparison


def _refused(where: str, overrides: Iterable[str], fixed: Iterable[str]) -> list[str]:
    """Overrides of what the comparison sets itself."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    return [f"{where}: {key} is set by the comparison itself" for key in keys if key in fixed]


def _explain(details: ErrorDetails, path: Path) -> list[str]:
    """One pydantic error as lines `file: dotted.path: what is wrong`."""
    where = ".".join(str(part) for part in details["loc"] if part != "[key]")
    if details["type"] == "value_error":
        return [f"{path}: {line}" for line in str(details.get("ctx", {})["error"]).splitlines()]
    if details["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(details["loc"][-1]), _owner(details["loc"]).model_fields, n=1)
        return [f"{path}: {where}: unknown key{did_you_mean(near)}"]
    if details["type"] == "missing":
        return [f"{path}: {where}: is missing"]
    if details["type"] in ("model_type", "model_attributes_type"):
        return [f"{path}: {where}: is a group of keys, got {show(details['input'])}"]
    return [f"{path}: {where}: {details['msg'].removeprefix('Input ')}, got {show(details['input'])}"]


def _owner(location: tuple[int | str, ...]) -> type[BaseModel]:
    groups: dict[int | str, type[BaseModel]] = {"methods": MethodSettings, "evaluate": JudgeSettings}
    return groups.get(location[0], ComparisonConfig) if len(location) > 1 else ComparisonConfig
