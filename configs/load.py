"""From a YAML file and dotted overrides to a checked `RunConfig`, and back to YAML.

All that is wrong is reported at once, one line a problem: where it comes from, the dotted path, the value given, and
the nearest known name. The YAML is YAML 1.2's core: `1e-4` is a number, `on` and `no` are text, a key appears once.
Files are bounded in bytes and in what their aliases make of them, and hold no secrets: they are saved with the run.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.files import read_file
from configs.problems import did_you_mean, explain, members_of, near_paths, paths, show, source_of, tag_of
from configs.schema import RunConfig
from configs.shown import safe, secret_in

# A configuration with every key has 6,000 bytes; the YAML reader takes a second for this many.
MOST_BYTES = 2**16
# Values in a file, those of an alias counted as often as it is used: nested aliases double them line by line.
MOST_VALUES = 50_000
DEEPEST = 50
MOST_PROBLEMS = 40

_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$")
_RESOLVERS = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
)


class ConfigError(ValueError):
    """What is wrong with a configuration; `problems` holds one line each, `str()` all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        left = len(problems) - MOST_PROBLEMS
        more = [f"and {left} more problems"] if left > 0 else []
        self.problems = (*map(safe, problems[:MOST_PROBLEMS]), *more)
        super().__init__("\n".join(self.problems))


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2's core schema, notes keys that appear twice, and counts values."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.duplicates: list[str] = []
        self._depth = self._values = 0
        self._values_in: dict[int, int] = {}  # by the node's identity, of those that are whole

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event, before = self.peek_event(), self._values
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"nested more than {DEEPEST} deep", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            self._values += self._values_in.get(id(node), 1)
        else:
            self._values += 1
            self._values_in[id(node)] = self._values - before
        if self._values > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_VALUES:,} values", problem_mark=event.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        # What its constructors raise for `!!int x`, `!!bool x`, `!!timestamp x`, or a number of 5,000 digits.
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(problem=f"cannot be read as {kind}", problem_mark=node.start_mark) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):  # `!!map x`
            return super().construct_mapping(node, deep)
        first_lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in first_lines:
                self.duplicates.append(
                    f"line {line}: duplicate key '{key.value}', first on line {first_lines[key.value]}"
                )
            elif isinstance(key, yaml.ScalarNode):
                first_lines[key.value] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or our loader would take for something else than text."""


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _starts in _RESOLVERS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _starts)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load_config(path: Path | None, overrides: Sequence[str]) -> RunConfig:
    """The configuration in `path` with overrides such as `rollout.actors=8` put in first; the last of a path counts.

    No path: all defaults. Raises ConfigError with every problem of the file and of the overrides.
    """
    data, problems = read_mapping(path) if path is not None else ({}, [])
    sources = _apply(overrides, data if data is not None else {}, problems)
    if data is None:
        raise ConfigError(problems)
    _name_members(data, RunConfig)
    try:
        config = RunConfig.model_validate(data, strict=True)
        problems += _secrets(config.model_dump(), str(path or "settings"), sources)
    except ValidationError as error:
        problems += explained(error, lambda details: explain(details, str(path or "settings"), sources))
    if problems:
        raise ConfigError(problems)
    return config


def explained(error: ValidationError, explain_one: Callable[[ErrorDetails], list[str]]) -> list[str]:
    """The lines for as many of pydantic's errors as are shown, as to find near names takes its time.

    An empty one for each of the rest, which ConfigError counts.
    """
    errors = error.errors(include_url=False)
    lines = [line for details in errors[:MOST_PROBLEMS] for line in explain_one(details)]
    return [*lines, *("" for _ in errors[MOST_PROBLEMS:])]


def to_yaml(config: RunConfig) -> str:
    """Every key of the configuration, in the schema's order; `load_config` reads it back equal."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_mapping(path: Path) -> tuple[dict[Any, Any] | None, list[str]]:
    """The file's mapping and what is wrong with it as YAML; None where there is no mapping to check further."""
    try:
        data, problems = _parse(read_file(path, MOST_BYTES).decode())
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        return None, [f"{path}: no such file{did_you_mean(str(path.with_name(name)) for name in near)}"]
    except OSError as error:
        return None, [f"{path}: cannot be read: {error.strerror}"]
    except UnicodeDecodeError as error:
        return None, [f"{path}: cannot be read: {error}"]
    except yaml.YAMLError as error:
        return None, [f"{path}: {_one_line(error)}"]
    problems = [f"{path}: {problem}" for problem in problems]
    if data is None:
        return {}, problems
    if not isinstance(data, dict):
        return None, [*problems, f"{path}: a mapping of groups is expected, got {show(data)}"]
    return data, problems


def _parse(text: str) -> tuple[Any, list[str]]:
    """The value of one YAML document and its duplicate keys. Raises yaml.YAMLError."""
    loader = _Loader(text)
    try:
        return loader.get_single_data(), loader.duplicates
    finally:
        loader.dispose()


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"not YAML: {str(error).splitlines()[0]}"
    said = ", ".join(part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part)
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}"


def _name_members(data: dict[Any, Any], group: type[BaseModel]) -> None:
    """A union of groups without a name is its default member, at any depth."""
    for name, field in group.model_fields.items():
        inner = data.get(name)
        if not field.discriminator or not isinstance(inner, dict):
            continue
        chosen = inner.setdefault(field.discriminator, getattr(field.default, str(field.discriminator)))
        for member in members_of(field):
            if tag_of(member) == chosen:
                _name_members(inner, member)


def _apply(overrides: Sequence[str], data: dict[Any, Any], problems: list[str]) -> dict[str, str]:
    """Put the overrides into `data`, add what is wrong with them to `problems`; dotted path -> the override's text."""
    sources: dict[str, str] = {}
    for override in overrides:
        path, equals, text = (part.strip() for part in override.partition("="))
        if not equals or not path:
            problems.append(f"override {override}: expected key=value, such as rollout.actors=4")
            continue
        try:
            value, duplicates = _parse(text)
        except yaml.YAMLError as error:
            problems.append(f"override {override}: {path}: {_one_line(error)}")
            continue
        wrong = duplicates[:1] or _refusal(path, value)
        if wrong:
            problems.append(f"override {override}: {path}: {wrong[0]}")
        else:
            sources[path] = f"override {override}"
            _put(data, path.split("."), value)
    return sources


def _secrets(settings: Mapping[str, Any], file: str, sources: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    """What must not be in a configuration, as it is saved with the run and shown in its report."""
    for name, value in settings.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _secrets(value, file, sources, f"{path}.")
        elif isinstance(value, str) and (kind := secret_in(value)):
            yield (
                f"{source_of(path, sources) or file}: {path}: holds {kind}, which would be saved with the run: "
                "leave it out, and put it into the environment of the nodes (HF_TOKEN, WANDB_API_KEY) or ~/.netrc"
            )


def _refusal(path: str, value: object) -> list[str]:
    """Why an override cannot even be put in; empty when it can."""
    groups = paths()
    if path in groups:
        # Null is for the check of the settings: some groups may be empty.
        if groups[path] and not isinstance(value, dict | None):
            first = next(p for p in groups if p.startswith(path + "."))
            return [f"is a group of keys, got {show(value)}; set one of them, such as {first}"]
        return []
    parts = path.split(".")
    for n in range(1, len(parts)):
        if groups.get(".".join(parts[:n])) is False:
            return [f"{'.'.join(parts[:n])} is a value, not a group of keys"]
    return [f"unknown key{did_you_mean(near_paths(path))}"]


def _put(data: dict[Any, Any], parts: list[str], value: object) -> None:
    """Set data[a][b]... = value; where the file holds a scalar for a group, the check of the file will say so."""
    for part in parts[:-1]:
        inner = data.setdefault(part, {})
        if not isinstance(inner, dict):
            return
        data = inner
    data[parts[-1]] = value
