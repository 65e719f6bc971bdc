"""Reads the JSON file of `env.names`: a list of levels, or nested objects that end in lists of names.

Every refusal is a BadEnvironment of one line: file, then line and column or the keys that lead to the place, then why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from configs.files import read_file
from envs.base import BadEnvironment
from envs.path_exploration.atlas import Atlas, Fork, folded, fork, of_levels
from envs.path_exploration.reading import SEPARATORS
from envs.protocol import SEPARATOR, shown

# The objects of a file are all built before any of them is counted, and take many times its bytes.
MOST_BYTES = 10**7
MOST_NAMES = 10**6
MOST_LEVELS = 16
MOST_PATHS = 10**18
LONGEST_NAME = 64
_KINDS = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", type(None): "null"}
# Threads that make environments at once read the file once.
_READING = Lock()


def read_names(path: str) -> Atlas:
    """The atlas of a file; read once a process as long as the file does not change. Raises BadEnvironment."""
    try:
        file = Path(path).expanduser()
        facts = file.stat()
        is_file = file.is_file()
    # RuntimeError: nobody has the home that `~name` stands for.
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadEnvironment(f"env.names: {path}: {reason}: name a JSON file") from error
    if not is_file:
        raise BadEnvironment(f"env.names: {path} is not a file: name a JSON file")
    with _READING:
        return _read(path, file, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=8)
def _read(source: str, file: Path, changed_ns: int, size: int) -> Atlas:  # noqa: ARG001 - part of the cache's key
    if size > MOST_BYTES:
        raise BadEnvironment(f"env.names: {source} has {size:,} bytes, more than {MOST_BYTES:,}: use a smaller file")
    return _Reader(source).atlas(_parsed(source, file))


def _parsed(source: str, file: Path) -> Any:
    try:
        return json.loads(read_file(file, MOST_BYTES).decode("utf-8-sig"), object_pairs_hook=_Object)
    except json.JSONDecodeError as error:
        where = f"{source}, line {error.lineno}, column {error.colno}"
        raise BadEnvironment(f"env.names: {where}: {error.msg}: mend the JSON") from error
    except UnicodeDecodeError as error:
        raise BadEnvironment(f"env.names: {source}: byte {error.start} is not UTF-8: save it as UTF-8") from error
    except RecursionError as error:
        raise BadEnvironment(f"env.names: {source} is nested too deeply: at most {MOST_LEVELS} levels") from error
    except (OSError, ValueError) as error:
        raise BadEnvironment(f"env.names: {source} cannot be read: {error}: mend it") from error


@dataclass(frozen=True, slots=True)
class _Object:
    """A JSON object that keeps keys which are there twice."""

    pairs: list[tuple[str, Any]]


class _Reader:
    """Checks one file's data; counts its names as it goes."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.names = 0

    def atlas(self, data: Any) -> Atlas:
        if isinstance(data, list):
            atlas = self._of_levels(data)
        elif isinstance(data, _Object):
            first, depth = self._branch(data, "", 1)
            atlas = Atlas(self.source, first, depth, None)
        else:
            raise self._bad("", "is neither a list of lists nor an object: write one of them")
        if atlas.paths > MOST_PATHS:
            raise self._bad("", f"makes more than {MOST_PATHS:.0e} paths: use fewer names or levels")
        return atlas

    def _of_levels(self, data: list[Any]) -> Atlas:
        if not 1 <= len(data) <= MOST_LEVELS:
            raise self._bad("", f"has {len(data)} levels: write 1 to {MOST_LEVELS} lists of names")
        for place, level in enumerate(data):
            if not isinstance(level, list):
                raise self._bad(f"[{place}]", f"is {_kind(level)}: write a list of names for each level")
        return of_levels(self.source, [self._level(level, f"[{place}]") for place, level in enumerate(data)])

    def _branch(self, data: Any, where: str, level: int) -> tuple[Fork, int]:
        """A fork of a tree, at its `level` counted from 1, and how many levels it has from there on."""
        if isinstance(data, list):
            return fork(self._level(data, where)), 1
        if not isinstance(data, _Object):
            raise self._bad(where, f"is {_kind(data)}: write an object, or a list of names at the last level")
        if level == MOST_LEVELS:
            raise self._bad(where, f"lies too deep: at most {MOST_LEVELS} levels")
        places = [f"{where}[{shown(json.dumps(key, ensure_ascii=False))}]" for key, _ in data.pairs]
        names = self._checked(((key, place) for (key, _), place in zip(data.pairs, places, strict=True)), where)
        forks = [self._branch(value, place, level + 1) for (_, value), place in zip(data.pairs, places, strict=True)]
        for (_, depth), place in zip(forks, places, strict=True):
            if depth != forks[0][1]:
                raise self._bad(place, f"is {depth} deep and {places[0]} {forks[0][1]}: make all of one depth")
        return fork(names, [following for following, _ in forks]), 1 + forks[0][1]

    def _level(self, level: list[Any], where: str) -> list[str]:
        return self._checked(((name, f"{where}[{place}]") for place, name in enumerate(level)), where)

    def _checked(self, entries: Iterator[tuple[Any, str]], where: str) -> list[str]:
        """Names that stand side by side, each with its place: all good, all different, one at least."""
        names: dict[str, str] = {}
        for name, place in entries:
            self._check(name, place)
            if folded(name) in names:
                raise self._bad(place, f"{shown(name)} is there already (case does not count): remove one")
            names[folded(name)] = " ".join(name.split())
        if not names:
            raise self._bad(where, "is empty: write a name at least")
        return list(names.values())

    def _check(self, name: Any, place: str) -> None:
        self.names += 1
        if self.names > MOST_NAMES:
            raise self._bad("", f"has more than {MOST_NAMES:,} names: use fewer")
        if not isinstance(name, str):
            raise self._bad(place, f"is {_kind(name)}: write a name")
        if not name.strip():
            raise self._bad(place, "is an empty name: write one")
        if len(name) > LONGEST_NAME:
            raise self._bad(place, f"has {len(name)} characters: at most {LONGEST_NAME} a name")
        if not name.isprintable() or SEPARATOR in name or "<" in name or SEPARATORS.search(name):
            raise self._bad(place, f"{shown(name)} holds a line break, <, >, /, || or ' - ', which answers use: rename")

    def _bad(self, where: str, why: str) -> BadEnvironment:
        return BadEnvironment(f"env.names: {self.source}{': ' if where else ''}{where} {why}")


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "an object")
