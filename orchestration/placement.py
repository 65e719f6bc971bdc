"""Where the processes of a run would come on a cluster: worked out on paper, packed as Ray packs them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

# Resources are sums of fractions.
_SLACK = 1e-6
_CHOICE = re.compile(r"in\((?P<values>.*)\)")


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of process: how many, and what each needs. together: they have one placement group.

    resources, labels: what else its node must have; a label's value as Ray's selectors are: `v`, `!v`, `in(v, w)`.
    """

    name: str
    count: int
    cpus: float
    gpus: float
    together: bool = False
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def bundle(self) -> dict[str, float]:
        return {k: v for k, v in (("CPU", self.cpus), ("GPU", self.gpus), *self.resources.items()) if v > 0}


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster. total, free: by Ray's names of resources. labels: Ray's own and those it was given."""

    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placement:
    """placed: numbers of a role's processes by node and role. left: what every node still has then.

    without: how many processes of each role found no place.
    """

    nodes: Sequence[Node]
    placed: Mapping[tuple[int, str], list[int]]
    left: Sequence[Mapping[str, float]]
    without: Sequence[tuple[Role, int]]


def place(needed: Sequence[Role], nodes: Sequence[Node]) -> Placement:
    """One role after the other, each process where least is left over: nodes with GPUs are spared where it can be."""
    left = [dict(node.free) for node in nodes]
    placed: dict[tuple[int, str], list[int]] = {}
    without = []
    for role in needed:
        fitting = [i for i, node in enumerate(nodes) if is_labelled(node.labels, role.labels)]
        at: int | None = None
        for number in range(role.count):
            at = _next(role, role.count - number, fitting, left, at)
            if at is None:
                without.append((role, role.count - number))
                break
            for kind, amount in role.bundle.items():
                left[at][kind] -= amount
            placed.setdefault((at, role.name), []).append(number)
    return Placement(nodes, placed, left, without)


def lacking(needed: Sequence[Role], nodes: Sequence[Node]) -> list[str]:
    """Why they cannot all have a place even were all nodes free, a phrase each; empty where nothing proves it."""
    kinds = dict.fromkeys(kind for role in needed for kind in role.bundle)
    phrases = [_short_of(kind, needed, nodes) for kind in kinds] + [_alone(role, nodes) for role in needed]
    return [phrase for phrase in phrases if phrase]


def plan_in_words(placement: Placement) -> Iterator[str]:
    """A line a node: who comes there and what is left; then a line for each role that does not fit."""
    for i, node in enumerate(placement.nodes):
        here = [f"{name} {_ranges(numbers)}" for (at, name), numbers in placement.placed.items() if at == i]
        kinds = sorted(kind for kind in node.total if _shown(kind))
        spare = ", ".join(f"{placement.left[i].get(k, 0.0):g} of {node.total[k]:g} {k}" for k in kinds)
        yield f"{node.name}: {', '.join(here) or 'nothing of this run'}; left {spare or 'nothing'}"
    for role, count in placement.without:
        yield f"no place for {count} of {role.count} {role.name}: {_by_how_much(role, count, placement.left)}"


def is_labelled(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node with these labels is one that these selectors ask for."""
    return all(_is_meant(labels.get(key), value) for key, value in wanted.items())


def _is_meant(value: str | None, selector: str) -> bool:
    not_so, selector = selector.startswith("!"), selector.removeprefix("!")
    choice = _CHOICE.fullmatch(selector)
    values = [one.strip() for one in choice["values"].split(",")] if choice else [selector]
    return (value in values) != not_so


def _next(
    role: Role, to_place: int, fitting: Sequence[int], left: Sequence[Mapping[str, float]], last: int | None
) -> int | None:
    """The node for a role's next process; None where no node has room. last: the one before's."""
    capacity = {i: _capacity(role, left[i]) for i in fitting}
    able = [i for i in fitting if capacity[i] >= 1]
    if role.together:
        if last in able:
            return last
        if not any(capacity[i] >= to_place for i in able):  # as few nodes as can be
            return max(able, key=capacity.__getitem__, default=None)
        able = [i for i in able if capacity[i] >= to_place]
    return min(able, key=lambda i: _size(left[i]), default=None)


def _capacity(role: Role, free: Mapping[str, float]) -> int:
    """How many of them fit there; their number where they need nothing."""
    return min((_times(kind, free.get(kind, 0.0), v) for kind, v in role.bundle.items()), default=role.count)


def _times(kind: str, free: float, amount: float) -> int:
    """How often an amount is in what is free. A share of a GPU is one GPU's, whatever is left of the others."""
    if kind != "GPU" or amount >= 1:
        return int((free + _SLACK) / amount)
    whole = int(free + _SLACK)
    return whole * int((1 + _SLACK) / amount) + int((free - whole + _SLACK) / amount)


def _size(free: Mapping[str, float]) -> tuple[float, float]:
    return free.get("GPU", 0.0), free.get("CPU", 0.0)


def _short_of(kind: str, needed: Sequence[Role], nodes: Sequence[Node]) -> str:
    wanted = sum(role.count * role.bundle.get(kind, 0.0) for role in needed)
    there = sum(node.total.get(kind, 0.0) for node in nodes)
    if wanted <= there + _SLACK:
        return ""
    parts = " + ".join(f"{r.count} {r.name} x {r.bundle[kind]:g}" for r in needed if kind in r.bundle)
    return f"{wanted:g} {kind} needed ({parts}), {there:g} there"


def _alone(role: Role, nodes: Sequence[Node]) -> str:
    """Why a role alone is too much for the nodes it may be on."""
    labelled = [node for node in nodes if is_labelled(node.labels, role.labels)]
    if role.labels and role.count and not labelled:
        return f"no node has the labels {dict(role.labels)} for a {role.name}"
    able = sum(_capacity(role, node.total) for node in labelled)
    if not able and role.count:
        return f"no single node has {role.bundle} for a {role.name}"
    if able < role.count and role.labels:
        return f"the nodes with the labels {dict(role.labels)} have room for {able} of {role.count} {role.name}"
    if able < role.count:
        return f"single nodes have room for {able} of {role.count} {role.name}, each with {role.bundle}"
    return ""


def _by_how_much(role: Role, count: int, left: Sequence[Mapping[str, float]]) -> str:
    short = []
    for kind, amount in role.bundle.items():
        there = sum(one.get(kind, 0.0) for one in left)
        if count * amount > there + _SLACK:
            short.append(f"{count * amount - there:g} {kind} more needed")
    if short:
        return ", ".join(short)
    return f"what is left is on several nodes, or on nodes without its labels; each needs {role.bundle} on one"


def _shown(kind: str) -> bool:
    """Ray counts memory and node addresses as resources too."""
    return kind not in ("memory", "object_store_memory") and ":" not in kind and not kind.startswith("bundle_group")


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as `0-2, 5`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}" if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
