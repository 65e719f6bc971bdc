"""Rows of JSON-lines files, parquet files and data set ids, one at a time, each with the place to name in an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.files import open_file
from envs.base import BadEnvironment

Row = Mapping[str, Any]
BATCH = 1024
LONGEST_LINE = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one file or data set with their places, such as `questions.jsonl:3`; `read` begins anew each time."""

    name: str
    read: Callable[[], Iterator[tuple[str, Row]]]

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        return self.read()


def file_rows(path: Path) -> Rows:
    """Of a .parquet file, or of a file with a JSON object on each line; empty lines do not count."""
    read = _parquet_rows if path.suffix.lower() == ".parquet" else _json_rows
    return Rows(str(path), lambda: read(path))


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    with open_file(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
            if len(line) > LONGEST_LINE:
                raise BadEnvironment(f"{path}:{number}: a line of more than {LONGEST_LINE >> 20} MiB")
            if line.strip():
                yield f"{path}:{number}", _json_row(f"{path}:{number}", line)


def _json_row(place: str, line: bytes) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadEnvironment(f"{place}: not UTF-8 text: {error.reason}") from error
    except (ValueError, RecursionError) as error:
        raise BadEnvironment(f"{place}: no JSON; one object a line is wanted: {error}") from error
    if not isinstance(row, dict):
        raise BadEnvironment(f"{place}: a JSON {type(row).__name__}; one object a line is wanted")
    return row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    # Imported here: it takes a third of a second, and JSON needs it not.
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    # ValueError and OverflowError: texts that are no UTF-8, dates that Python has no room for.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadEnvironment(f"{path}: not a parquet file that can be read: {reason}") from error


def dataset_rows(name: str, subset: str | None, split: str) -> Rows:
    """Of a data set on the hub, downloaded once by its library. Raises whatever that raises."""
    found = load_dataset(name, subset, split)

    def read() -> Iterator[tuple[str, Row]]:
        number = 0
        try:
            for number, row in enumerate(found, start=1):
                yield f"{name} ({split}) row {number}", row
        except BadEnvironment:
            raise  # of whoever looks at the rows
        except Exception as error:  # the library decodes rows as they are asked for, and raises its own kinds
            raise BadEnvironment(f"{name} ({split}) behind row {number}: cannot be read: {error}") from error

    return Rows(f"{name} ({split})", read)


def load_dataset(name: str, subset: str | None, split: str) -> Any:
    """The data set's rows, to be iterated."""
    import datasets

    return datasets.load_dataset(name, name=subset, split=split)
