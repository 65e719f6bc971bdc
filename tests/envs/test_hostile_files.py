"""Levels, names and questions are untrusted files: an environment, or one line that names the key, soon."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.environments import EnvSettings, MathSettings, PathExplorationSettings, SokobanSettings
from envs.base import BadEnvironment
from envs.math.sources import LONGEST_LINE, Rows
from envs.registry import make_env
from envs.sokoban.levels import MOST_BYTES

FILES: dict[str, tuple[str, Callable[[str], EnvSettings]]] = {
    "levels": ("x.txt", lambda path: SokobanSettings(levels=path)),
    "names": ("x.json", lambda path: PathExplorationSettings(names=path, targets=1)),
    "data": ("x.jsonl", lambda path: MathSettings(data=path)),
    "parquet": ("x.parquet", lambda path: MathSettings(data=path)),
}


@pytest.fixture(params=FILES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def no_graders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.math.grading.Graders.start", lambda _: None)


def refused(kind: str, path: Path | str) -> str:
    with pytest.raises(BadEnvironment) as caught:
        make_env(FILES[kind][1](str(path)))
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) <= 1000
    return said


def written(kind: str, folder: Path, data: bytes) -> Path:
    path = folder / FILES[kind][0]
    path.write_bytes(data)
    return path


def test_pipes_devices_and_loops_are_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / FILES[kind][0]
    os.mkfifo(path)
    assert str(path) in refused(kind, path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert str(path) in refused(kind, path)
    path.unlink()
    path.symlink_to(path)
    assert str(path) in refused(kind, path)
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / FILES[kind][0])
    assert str(folder) in refused(kind, folder)


@pytest.mark.parametrize("path", ["a\0b", "~nobody-of-that-name/x", "a\nb\x1b[2J", "x" * 5000, "/proc/self/mem"])
def test_odd_paths_are_one_line(kind: str, path: str) -> None:
    assert refused(kind, path)


HOSTILE = {
    "binary": bytes(range(256)) * 100,
    "zeros": b"\0" * 10**5,
    "one line": b"#" * (MOST_BYTES - 1),
    "many lines": b"#\n" * 10**6,
    "empty lines": b"\n" * (MOST_BYTES - 1),
    "brackets": b"[" * 10**6,
    "objects": b'{"a":' * 10**5,
    "lists": b"[" + b"[]," * 10**6 + b"[]]",
    "a long number": b"[" + b"9" * 10**5 + b"]",
    "numbers": b"[1e999, -1e999, NaN]",
    "quotes": b'"' * 10**5,
    "escapes": b'["' + b"\\u0000" * 10**4 + b'"]',
    "half a pair": b'[["\\ud800"]]',
    "UTF-16": "[]".encode("utf-16"),
    "a name of many lines": b'{"a\\nb\\u2028": 1, "question": [], "answer": {}}',
    "rows that are none": b'{"question": "a", "answer": [[[[[[]]]]]]}\n',
    "a row of nulls": b'{"question": null, "answer": null}\n',
    "a huge answer": b'{"question": "a", "answer": "' + b"9^" * 10**5 + b'"}\n',
    "a huge field": b'{"question": "a", "answer": "1", "' + b"x" * (LONGEST_LINE + 1) + b'": 1}\n',
    "an answer of numbers": b'{"question": "a", "answer": 1e308}\n{"question": "b", "answer": 1e999}\n',
    "parquet's mark": b"PAR1" + b"\xff" * 1000 + b"PAR1",
    "parquet's mark alone": b"PAR1PAR1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_contents_are_one_line(name: str, kind: str, tmp_path: Path) -> None:
    path = written(kind, tmp_path, HOSTILE[name])
    began = time.perf_counter()
    assert "x." in refused(kind, path)
    assert time.perf_counter() - began < 20  # at most three on a quiet machine


@pytest.mark.parametrize("kind", ["levels", "data"], indirect=True)
def test_a_huge_file_is_refused_before_it_is_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / FILES[kind][0]
    with path.open("wb") as file:
        file.truncate(2**40)
    tracemalloc.start()
    assert "more than 4 MiB" in refused(kind, path)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


def test_names_of_a_huge_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert "more than 10,000,000" in refused("names", path)


def test_a_level_without_end_is_refused_where_it_is_too_long(tmp_path: Path) -> None:
    path = written("levels", tmp_path, b"#\n" * 10**6)
    tracemalloc.start()
    assert "a level of more than 64 rows" in refused("levels", path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20  # the text, and none of its lines


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | st.text("#@$. \n", max_size=60).map(str.encode)
)
def test_any_bytes_are_an_environment_or_one_line(kind: str, data: bytes, tmp_path: Path) -> None:
    path = written(kind, tmp_path, data)
    said = ""
    try:
        make_env(FILES[kind][1](str(path)))
    except BadEnvironment as error:
        said = str(error)
    assert said.isprintable()


# --- parquet ---------------------------------------------------------------------------------------------------------


def parquet(folder: Path, table: Any) -> Path:
    path = folder / "x.parquet"
    pyarrow.parquet.write_table(table, path)
    return path


def test_columns_that_python_has_no_room_for_are_one_line(tmp_path: Path) -> None:
    bad = pyarrow.array([b"\xff\xfe"]).cast(pyarrow.binary()).view(pyarrow.utf8())
    assert "not a parquet file that can be read" in refused(
        "parquet", parquet(tmp_path, pyarrow.table({"question": bad}))
    )
    late = pyarrow.array(np.array([2**58], "int64")).cast(pyarrow.timestamp("us"))
    assert "not a parquet file that can be read" in refused(
        "parquet", parquet(tmp_path, pyarrow.table({"question": late}))
    )


def test_a_cut_parquet_file_is_one_line(tmp_path: Path) -> None:
    path = parquet(tmp_path, pyarrow.table({"question": ["a"] * 100, "answer": ["1"] * 100}))
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:size])
        assert str(path) in refused("parquet", path)


# --- data sets -------------------------------------------------------------------------------------------------------


def test_rows_that_a_library_cannot_decode_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(*_: Any) -> Any:
        yield {"question": "a", "answer": "1"}
        raise RuntimeError("no such\ncodec")

    monkeypatch.setattr("envs.math.sources.load_dataset", rows)
    said = refused("data", "owner/name")
    assert said == r"owner/name (train) behind row 1: cannot be read: no such\ncodec"


def test_a_bad_row_of_a_data_set_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.math.sources.load_dataset", lambda *_: [{"question": "a", "answer": []}])
    assert refused("data", "owner/name").startswith("owner/name (train) row 1: the answer in column answer must be")


def test_rows_can_be_read_again(tmp_path: Path) -> None:
    path = written("data", tmp_path, b'{"question": "a", "answer": "1"}\n')
    from envs.math.sources import file_rows

    rows: Rows = file_rows(path)
    assert list(rows) == list(rows) == [(f"{path}:1", json.loads(path.read_text()))]
