"""How long weights take to reach many engines, by the way they go: a model, nothing is sent.

Every machine has one link, as fast for sending as for receiving, both at once. A message of n bytes takes
`latency_s + n / bytes_per_s` (Hockney's model) and can be sent on when it is whole. Weights of W bytes go in
k = ceil(W / bucket_bytes) equal buckets, each of which takes one step, t. N engines, the learner apart:

    flat    the learner sends every bucket to every engine                                   k N t
    ring    the learner sends to one engine, each engine to the next                         (k + N - 1) t
    tree    the learner and every engine send every bucket on to two others                  2 (k + d - 1) t

d is the depth of a binary tree of N + 1; where its last level has gaps the tree may be faster by a few steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """A machine's. Raises ValueError for one that carries nothing."""

    bytes_per_s: float
    latency_s: float

    def __post_init__(self) -> None:
        if not (self.bytes_per_s > 0 and self.latency_s >= 0):
            raise ValueError(f"a link of {self.bytes_per_s:g} bytes/s and {self.latency_s:g} s carries nothing")


def flat_s(weight_bytes: int, engines: int, link: Link, bucket_bytes: int) -> float:
    """Seconds until the last engine has all; bound by the learner's link. Raises ValueError, as the others do."""
    buckets, step_s = _steps(weight_bytes, engines, link, bucket_bytes)
    return buckets * engines * step_s


def ring_s(weight_bytes: int, engines: int, link: Link, bucket_bytes: int) -> float:
    buckets, step_s = _steps(weight_bytes, engines, link, bucket_bytes)
    return (buckets + engines - 1) * step_s


def tree_s(weight_bytes: int, engines: int, link: Link, bucket_bytes: int) -> float:
    """Of a binary tree with the learner as its root. Every second step a bucket goes to one's other child."""
    buckets, step_s = _steps(weight_bytes, engines, link, bucket_bytes)
    if engines == 1:
        return buckets * step_s
    return 2 * (buckets + depth(engines) - 1) * step_s


def depth(engines: int) -> int:
    """Levels of a binary tree below its root."""
    return math.ceil(math.log2(engines + 2)) - 1


def _steps(weight_bytes: int, engines: int, link: Link, bucket_bytes: int) -> tuple[int, float]:
    """How many buckets, and the seconds of one."""
    named = {"weight_bytes": weight_bytes, "engines": engines, "bucket_bytes": bucket_bytes}
    for name, value in named.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: at least 1 is needed")
    buckets = math.ceil(weight_bytes / bucket_bytes)
    return buckets, link.latency_s + weight_bytes / buckets / link.bytes_per_s


def table(link: Link, bucket_bytes: int) -> dict[str, dict[str, float]]:
    """Seconds by policy, engines and way, for the page: bf16 weights, two bytes a parameter."""
    ways = {"flat": flat_s, "ring": ring_s, "tree": tree_s}
    return {
        f"{parameters / 1e9:g}B to {engines}": {
            name: seconds(2 * parameters, engines, link, bucket_bytes) for name, seconds in ways.items()
        }
        for parameters in (1_500_000_000, 7_000_000_000)
        for engines in (16, 128, 1024)
    }
