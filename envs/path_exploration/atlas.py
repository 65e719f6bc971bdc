"""An atlas: the names of every level, the paths they make, and which paths are hidden targets. Knows no game.

A path is one name a level. Paths are numbered from 0, in the order of their names, the first level's names first.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

SLASH = " / "
# 16 letters times 4 vowels: a stem for each of the 64 names that a level may have.
_LETTERS, _VOWELS = "BDFGHKLMNPRSTVWZ", "aeio"
_ENDINGS = ("dorn", "veth", "lusk", "nard", "bex", "mip")
_LETTERS_A_LEVEL = 5
_MAPS_KEPT = 256
# Of all maps together: about 150 MB.
_TARGETS_KEPT = 10**6

Path = tuple[str, ...]


def folded(name: str) -> str:
    """What two spellings of a name share: case and the number of blanks do not count."""
    return " ".join(name.split()).casefold()


@dataclass(frozen=True, slots=True, eq=False)
class Fork:
    """The names a path can go on with, and where each leads. Compared by identity; make one with `fork`.

    after: a fork for each name; empty at the last level. places: folded name -> its place in `names`. ends: for each
    name, how many paths from here go through it or one before it.
    """

    names: tuple[str, ...]
    after: tuple[Fork, ...]
    places: Mapping[str, int]
    ends: Sequence[int]

    @property
    def paths(self) -> int:
        """How many paths go on from here."""
        return self.ends[-1]

    def path(self, number: int) -> Path:
        """The path of a number below `paths`, from this fork on."""
        here, names = self, []
        while True:
            place = bisect_right(here.ends, number)
            names.append(here.names[place])
            if not here.after:
                return tuple(names)
            number -= here.ends[place - 1] if place else 0
            here = here.after[place]


def fork(names: Sequence[str], after: Sequence[Fork] = ()) -> Fork:
    """A fork of names that differ when folded; `after`: a fork for each, none at the last level."""
    ends: Sequence[int] = range(1, len(names) + 1)
    if after:
        ends, total = [], 0
        for following in after:
            total += following.paths
            ends.append(total)
    return Fork(tuple(names), tuple(after), {folded(name): place for place, name in enumerate(names)}, ends)


@dataclass(frozen=True, slots=True, eq=False)
class Atlas:
    """All paths there are. `levels`: the names of each level where any combination is a path; None for a tree.

    `source`: what a message calls it, such as its file. Compared by identity.
    """

    source: str
    first: Fork
    depth: int
    levels: tuple[tuple[str, ...], ...] | None

    @property
    def paths(self) -> int:
        """How many paths there are."""
        return self.first.paths

    def walked(self, names: Iterable[str]) -> tuple[Path, Fork | None]:
        """The longest known start of a path, as the atlas writes its names, and the fork after it (None: the end)."""
        known: list[str] = []
        here: Fork | None = self.first
        for name in names:
            place = None if here is None else here.places.get(folded(name))
            if here is None or place is None:
                break
            known.append(here.names[place])
            here = here.after[place] if here.after else None
        return tuple(known), here


def of_levels(source: str, levels: Sequence[Sequence[str]]) -> Atlas:
    """An atlas in which any combination of the levels' names is a path."""
    here = fork(levels[-1])
    for names in reversed(levels[:-1]):
        here = fork(names, [here] * len(names))
    return Atlas(source, here, len(levels), tuple(tuple(names) for names in levels))


@lru_cache(maxsize=16)
def invented(depth: int, branching: int) -> Atlas:
    """An atlas of made-up names, `branching` (at most 64) a level: always the same, no name twice in any level.

    A name is a stem (letter, vowel) and its level's ending, so that a tokenizer needs few entries for all of them.
    """
    levels = [[_stem(level, number) + _ENDINGS[level] for number in range(branching)] for level in range(depth)]
    return of_levels("the atlas", levels)


def _stem(level: int, number: int) -> str:
    # Numbers that share a letter lie 16 apart, and the second term gives them different vowels.
    letter = _LETTERS[(number + level * _LETTERS_A_LEVEL) % len(_LETTERS)]
    return letter + _VOWELS[(number + number // len(_LETTERS) + level) % len(_VOWELS)]


@dataclass(frozen=True, slots=True)
class Targets:
    """Hidden targets of one map as texts: in the order they were drawn, and as a set."""

    drawn: tuple[str, ...]
    all: frozenset[str]


class _Kept:
    """Targets of the maps asked for last: up to _MAPS_KEPT maps and _TARGETS_KEPT targets, one map at least."""

    def __init__(self) -> None:
        self._maps: OrderedDict[tuple[Atlas, int, int], Targets] = OrderedDict()
        self._lock = Lock()

    def get(self, atlas: Atlas, map_number: int, count: int) -> Targets:
        key = atlas, map_number, count
        with self._lock:
            if key in self._maps:
                self._maps.move_to_end(key)
                return self._maps[key]
        # Not in the lock: who wants another map need not wait, and two that want the same one draw the same.
        found = _drawn(atlas, map_number, count)
        with self._lock:
            self._maps[key] = found
            while len(self._maps) > 1 and self._is_too_much():
                self._maps.popitem(last=False)
        return found

    def _is_too_much(self) -> bool:
        return len(self._maps) > _MAPS_KEPT or sum(len(kept.drawn) for kept in self._maps.values()) > _TARGETS_KEPT


_KEPT = _Kept()


def hidden_targets(atlas: Atlas, map_number: int, count: int) -> Targets:
    """The targets of a map: a pure function of the map's number, the atlas's paths and the count (at most `paths`)."""
    return _KEPT.get(atlas, map_number, count)


def _drawn(atlas: Atlas, map_number: int, count: int) -> Targets:
    texts = tuple(SLASH.join(atlas.first.path(number)) for number in draw(f"map {map_number}", atlas.paths, count))
    return Targets(texts, frozenset(texts))


def draw(key: str, population: int, count: int) -> list[int]:
    """`count` different numbers below `population`: the same for the same key on any machine and library version.

    The start of a Fisher-Yates shuffle that keeps only what it moved, fed by SHA-256.
    """
    moved: dict[int, int] = {}
    drawn = []
    for place in range(count):
        digest = hashlib.sha256(f"{key}:{place}".encode()).digest()
        other = place + int.from_bytes(digest[:16], "big") % (population - place)
        drawn.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return drawn
