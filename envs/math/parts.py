"""Which records are trained on and which are held out for evaluation: no question is on both sides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock

from configs.environments import MathSettings
from envs.base import BadEnvironment
from envs.math.records import Record, Source, load

HELD_OUT_EVERY = 10
MOST_KEPT = 8
Records = tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """`training` and `held_out` records, and what was loaded for them."""

    training: Records
    held_out: Records
    loaded: tuple[Records, Records | None]


_parts: dict[tuple[Source, Source | None], Parts] = {}
_splitting = Lock()


def split_records(settings: MathSettings) -> Parts:
    """Held out are the records of `held_out_data`, else those of every tenth distinct question of `data`.

    Questions that differ in blanks alone are the same one, and what is held out is not trained on. But of fewer than
    ten questions all are both trained on and evaluated. Split once a process while no file changes. Raises
    BadEnvironment.
    """
    data = _source(settings, "env.data", settings.data, settings.split)
    other = None
    if settings.held_out_data is not None:
        other = _source(settings, "env.held_out_data", settings.held_out_data, settings.held_out_split)
    records, held_out = load(data), None if other is None else load(other)
    with _splitting:
        found = _parts.get((data, other))
        if found is None or found.loaded[0] is not records or found.loaded[1] is not held_out:
            found = _split(records, held_out, settings)
            if len(_parts) >= MOST_KEPT:
                _parts.clear()
            _parts[data, other] = found
    return found


def _source(settings: MathSettings, key: str, data: str, split: str) -> Source:
    return Source(key, data, split, settings.subset, settings.question_column, settings.answer_column)


def _split(records: Records, held_out: Records | None, settings: MathSettings) -> Parts:
    loaded = (records, held_out)
    if held_out is not None:
        training = _without(records, {_folded(record) for record in held_out})
        if not training:
            raise BadEnvironment(
                f"env.held_out_data: all questions of {settings.data} are in {settings.held_out_data} too: held out, "
                "they leave none to train on"
            )
        return Parts(training, held_out, loaded)
    questions = list(dict.fromkeys(map(_folded, records)))
    kept_back = set(questions[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    if not kept_back:
        return Parts(records, records, loaded)
    held_out = tuple(record for record in records if _folded(record) in kept_back)
    return Parts(_without(records, kept_back), held_out, loaded)


def _without(records: Iterable[Record], questions: set[str]) -> Records:
    return tuple(record for record in records if _folded(record) not in questions)


def _folded(record: Record) -> str:
    return " ".join(record.question.split())
