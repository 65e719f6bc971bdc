"""What is wrong with a configuration, said in one line each: the dotted path, the value given, the nearest known name.

Reads the schema, so that it needs no list of its own. Unions of groups (`sampler`) are told apart by `name`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from configs.schema import RunConfig
from configs.shown import MOST_SHOWN, redacted

_MOST_SHOWN = 60


def explain(details: ErrorDetails, file: str, sources: Mapping[str, str]) -> list[str]:
    """One pydantic error as lines `source: dotted.path: what is wrong`."""
    path, owner = _locate(details["loc"])
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "union_tag_invalid":
        tag = str(context["discriminator"]).strip("'")
        known = re.findall(r"'([^']*)'", context["expected_tags"])
        near = difflib.get_close_matches(str(context["tag"]), known, n=1)
        path, said = f"{path}.{tag}", f"should be one of {context['expected_tags']}, got {show(value[tag])}"
        said += did_you_mean(near)
    elif kind == "extra_forbidden":
        said = _unknown(path, owner, sources)
    elif kind in ("model_type", "model_attributes_type"):
        said = f"is a group of keys, got {show(value)}"
    elif kind == "value_error":
        where = f"{path}: " if path else ""
        return [f"{file}: {where}{line}" for line in str(context["error"]).splitlines()]
    else:
        said = f"{details['msg'].removeprefix('Input ')}, got {show(value)}"
    return [f"{source_of(path, sources) or file}: {path}: {said}"]


def source_of(path: str, sources: Mapping[str, str]) -> str | None:
    """The override that set `path` or a group around it, else one that set a key in it."""
    around = [p for p in sources if path == p or path.startswith(p + ".")]
    inside = [p for p in sources if p.startswith(path + ".")]
    return sources[max(around, key=len)] if around else sources[inside[0]] if inside else None


def _unknown(path: str, owner: type[BaseModel], sources: Mapping[str, str]) -> str:
    """What to say of a key that `owner` does not have: another member's key, a misspelt one, or one of elsewhere."""
    group, _, key = path.rpartition(".")
    members = _members_at(group)
    if path in paths() and owner not in members:
        return f"unknown key; in a file the key is {key!r} in the group {group!r}"  # one key, with dots in it
    others = " or ".join(repr(tag_of(m)) for m in members if key in m.model_fields) if len(members) > 1 else ""
    if others:
        chooser = source_of(f"{group}.name", sources)
        by = f" (by {chooser})" if chooser else ""
        return f"unknown key for {tag_of(owner)!r}; it belongs to {others}, but {group}.name is {tag_of(owner)!r}{by}"
    near = difflib.get_close_matches(key, owner.model_fields, n=1)
    if source_of(path, sources) and near:
        near = [f"{group}.{near[0]}"]
    return f"unknown key{did_you_mean(near or near_paths(path))}"


def _locate(location: Iterable[int | str]) -> tuple[str, type[BaseModel]]:
    """The dotted path of a pydantic location, without the tags of unions, and the group that holds its last part."""
    owner: type[BaseModel] = RunConfig
    members: tuple[type[BaseModel], ...] = (RunConfig,)
    path: list[str] = []
    for part in location:
        if len(members) > 1:
            members = tuple(member for member in members if part == tag_of(member))
            continue
        owner = members[0] if members else owner
        path.append(str(part))
        field = owner.model_fields.get(str(part))
        members = members_of(field) if field else ()
    return ".".join(path), owner


def _members_at(path: str) -> tuple[type[BaseModel], ...]:
    """The groups a dotted path may hold, whatever members the unions on the way to it have."""
    members: tuple[type[BaseModel], ...] = (RunConfig,)
    for part in filter(None, path.split(".")):
        fields = [member.model_fields[part] for member in members if part in member.model_fields]
        members = tuple(inner for field in fields for inner in members_of(field))
    return members


def members_of(field: FieldInfo) -> tuple[type[BaseModel], ...]:
    """The groups a field may hold: none for a value, several for a tagged union."""
    options = get_args(field.annotation) or (field.annotation,)
    return tuple(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))


def tag_of(member: type[BaseModel]) -> str:
    """The one `name` that chooses this member of a union of groups."""
    return str(get_args(member.model_fields["name"].annotation)[0])


@cache
def paths() -> dict[str, bool]:
    """Every dotted path of the schema, all members of unions included -> whether it is a group."""

    def walk(model: type[BaseModel], prefix: str) -> Iterable[tuple[str, bool]]:
        for name, field in model.model_fields.items():
            members = members_of(field)
            yield prefix + name, bool(members)
            for member in members:
                yield from walk(member, f"{prefix}{name}.")

    return dict(walk(RunConfig, ""))


def near_paths(path: str) -> list[str]:
    """Known dotted paths like an unknown one: but for a slip the same, else the key elsewhere, else the nearest."""
    key = path.rpartition(".")[2]
    slip = difflib.get_close_matches(path, paths(), n=1, cutoff=0.85)
    elsewhere = [p for p in paths() if p.rpartition(".")[2] == key][:3]
    near = difflib.get_close_matches(path, paths(), n=1)
    keys = difflib.get_close_matches(key, {p.rpartition(".")[2] for p in paths()}, n=1)
    return slip or elsewhere or near or [p for p in paths() if p.rpartition(".")[2] in keys][:3]


def did_you_mean(names: Iterable[str]) -> str:
    listed = " or ".join(repr(name) for name in names)
    return f"; did you mean {listed}?" if listed else ""


def show(value: object) -> str:
    """A value as YAML's flow style spells it, cut when long, without secrets; a loop of aliases as Python spells it."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    text = redacted(text[:MOST_SHOWN])  # before it is cut: half a secret is not found
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
