"""Question and answer records from files or a data set id, checked: a bad record is an error that tells its place.

A record has a question (column `question` or `problem`) and an answer (`answer` or `solution`), names in any case. That
covers GSM8K {question, answer: "... #### 72"}, MATH {problem, solution: "... \\boxed{72}"} with or without an answer of
its own, and AIME {Problem, Answer: 72}. `final_answer` says which part of the field counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from envs.base import BadEnvironment
from envs.math.answers import checked, final_answer, normal
from envs.math.sources import Rows, dataset_rows, file_rows
from envs.protocol import MAX_TEXT, Unreadable

DATASET_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
SUFFIXES = (".jsonl", ".json", ".parquet")
QUESTIONS = ("question", "problem")
ANSWERS = ("answer", "solution")
# The words around a question: turns left and the like.
MOST_QUESTION = MAX_TEXT - 256
LONGEST_SOLUTION = 300
CALCULATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, slots=True)
class Record:
    """`solution`: the worked solution on one line; empty where there is none, or only a long one."""

    question: str
    answer: str
    solution: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where records are: `key` is the setting that says so, for messages. The rest as in MathSettings."""

    key: str
    data: str
    split: str
    subset: str | None
    question_column: str | None
    answer_column: str | None


# The threads that begin together would each load all of it.
_loading = Lock()


def load(source: Source) -> tuple[Record, ...]:
    """All records, files of a folder by name; loaded once a process while no file changes. Raises BadEnvironment."""
    try:
        stamps = [(str(file), file.stat()) for file in _files(source)]
        with _loading:
            return _loaded(source, tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stamps))
    except (OSError, RuntimeError) as error:
        raise BadEnvironment(f"{source.key}: {source.data} cannot be read: {error}") from error


def _files(source: Source) -> list[Path]:
    """The files that are meant; none for a data set id."""
    path = Path(source.data).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        if not found:
            raise BadEnvironment(f"{source.key}: the folder {path} holds no {_listed(SUFFIXES, 'or')} file")
        return found
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise BadEnvironment(f"{source.key}: {path} must end in {_listed(SUFFIXES, 'or')}, to tell what it is")
        return [path]
    if path.suffix.lower() in SUFFIXES or not DATASET_ID.fullmatch(source.data):
        raise BadEnvironment(f"{source.key}: there is no file or folder {path}, nor is it a data set id (owner/name)")
    return []


@lru_cache(maxsize=8)
def _loaded(source: Source, files: tuple[tuple[str, int, int], ...]) -> tuple[Record, ...]:
    """`files`: paths with the time and size that tell whether they changed."""
    parts = [file_rows(Path(name)) for name, _, _ in files] if files else [_dataset(source)]
    return tuple(record for part in parts for record in _records(part, source))


def _dataset(source: Source) -> Rows:
    try:
        return dataset_rows(source.data, source.subset, source.split)
    except Exception as error:  # the library raises its own kinds, the hub's, the file system's and the network's
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadEnvironment(
            f"{source.key}: there is no file or folder {source.data}, and the data set of that id cannot be loaded "
            f"(split {source.split}, env.subset {source.subset}): {reason}"
        ) from error


def _records(rows: Rows, source: Source) -> Iterator[Record]:
    empty = True
    for place, row in rows:
        yield _record(place, row, source)
        empty = False
    if empty:
        raise BadEnvironment(f"{source.key}: {rows.name} holds no record")


def _record(place: str, row: Mapping[str, Any], source: Source) -> Record:
    asked = _column(place, row, source.question_column, QUESTIONS, "env.question_column")
    answered = _column(place, row, source.answer_column, ANSWERS, "env.answer_column")
    question = row[asked]
    if not isinstance(question, str) or not question.strip():
        raise BadEnvironment(f"{place}: the question in column {asked} must be a text that is not empty")
    if len(question) > MOST_QUESTION:
        raise BadEnvironment(f"{place}: the question has {len(question)} characters, at most {MOST_QUESTION} fit")
    field = _text(place, row[answered], answered)
    answer = final_answer(field)
    try:
        if not normal(checked(answer)):
            raise Unreadable("there is no answer in it.")
    except Unreadable as reason:
        raise BadEnvironment(f"{place}: the answer in column {answered} cannot be graded: {reason}") from reason
    return Record(question.strip(), answer, _solution(row, answered, field, answer))


def _column(place: str, row: Mapping[str, Any], chosen: str | None, usual: Sequence[str], key: str) -> str:
    """The name, as the record writes it, of the column that is wanted."""
    written = {name.lower(): name for name in row}
    if chosen is not None and chosen in row:
        return chosen
    for name in usual if chosen is None else (chosen.lower(),):
        if name in written:
            return written[name]
    wanted = _listed(usual, "or") if chosen is None else chosen
    raise BadEnvironment(f"{place}: no column {wanted} ({key}); the columns are {_listed(list(row)[:20], 'and')}")


def _text(place: str, value: Any, column: str) -> str:
    """An answer field as text; whole numbers are written without a point."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(value)
    raise BadEnvironment(f"{place}: the answer in column {column} must be a text or a number, it is {value!r:.40}")


def _solution(row: Mapping[str, Any], answered: str, field: str, answer: str) -> str:
    """The worked solution: the answer's field before its last part, or a field of that name."""
    worked = field.rpartition("####")[0] if "####" in field else field
    if worked.strip() == answer:
        named = next((name for name in row if name.lower() == "solution" and name != answered), None)
        worked = row[named] if named is not None and isinstance(row[named], str) else ""
    line = " ".join(CALCULATION.sub("", worked).split())
    return line if len(line) <= LONGEST_SOLUTION else ""


def _listed(names: Iterable[str], word: str) -> str:
    *rest, last = [str(name)[:40] for name in names] or ["(none)"]
    return f"{', '.join(rest)} {word} {last}" if rest else last
