"""How paths and regions are read from a policy's text. Nothing here raises, and all of it takes bounded time."""

from __future__ import annotations

import re

from envs.path_exploration.atlas import Atlas, Path, folded

# A hyphen separates only between blanks: names may hold one.
SEPARATORS = re.compile(r"/|->|>|\s-\s")
_LONGEST_SKETCH = 1000
_MOST_WORDS = 24
_AROUND_NAMES = " .,:;!?\"'`*()[]{}"


def split_path(text: str, depth: int) -> list[str] | None:
    """The names of a path as they are written; None unless there are `depth` of them, none empty."""
    names = SEPARATORS.split(text, maxsplit=depth)
    return names if len(names) == depth and all(name.strip() for name in names) else None


def read_region(text: str, atlas: Atlas) -> Path | None:
    """The region that a sketch such as `in Alba / Birken` names: the start of a path.

    Words around the names do not matter. None where a name is not known in its place: cut short there, the region would
    be another one than was meant.
    """
    region: Path = ()
    for piece in SEPARATORS.split(text[:_LONGEST_SKETCH], maxsplit=atlas.depth):
        longer = _extended(region, piece, atlas)
        if longer is None:
            return None
        region = longer
    return region


def _extended(region: Path, piece: str, atlas: Atlas) -> Path | None:
    """The region and the first name in `piece` that can follow it, of several that start there the longest."""
    words = piece.split()[:_MOST_WORDS]
    if len(words) > 1 and folded(words[0]) == "in":
        words = words[1:]
    after = atlas.walked(region)[1]
    for start in range(len(words)):
        for end in range(len(words), start, -1):
            said = " ".join(words[start:end])
            for name in (said, said.strip(_AROUND_NAMES)):
                if after is not None and folded(name) in after.places:
                    return (*region, after.names[after.places[folded(name)]])
    return None
