"""Records of Math: the shapes of known data sets, in each kind of file, and what is said of bad ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from configs.environments import MathSettings
from envs.base import BadEnvironment
from envs.math import records, sources
from envs.math.env import Math
from envs.math.parts import split_records
from envs.math.records import Record, Source, load
from envs.protocol import MAX_TEXT

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]
GSM8K = {"question": "6 boxes of 12 eggs?", "answer": "6 * 12 = <<6*12=72>>72 eggs.\nAll whole.\n#### 72"}
LARGE = {"question": "How many?", "answer": "A lot.\n#### 1,234,567"}
MATH = {"problem": "Half of $7$?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{\\frac{7}{2}}$."}
MATH_500 = {
    "problem": "Half of $7$?",
    "solution": "See $\\boxed{3.5}$.",
    "answer": "\\frac{7}{2}",
    "subject": "Algebra",
}
AIME = {"ID": "2024-I-1", "Problem": "How long?", "Solution": "A walk.", "Answer": 204}
AIME_TEXT = {"id": 60, "problem": "How long?", "answer": "033", "url": "x"}
SHAPES = [
    (GSM8K, Record("6 boxes of 12 eggs?", "72", "6 * 12 = 72 eggs. All whole.")),
    (LARGE, Record("How many?", "1,234,567", "A lot.")),
    (MATH, Record("Half of $7$?", "\\frac{7}{2}", "It is $\\boxed{\\frac{7}{2}}$.")),
    (MATH_500, Record("Half of $7$?", "\\frac{7}{2}", "See $\\boxed{3.5}$.")),
    (AIME, Record("How long?", "204", "A walk.")),
    (AIME_TEXT, Record("How long?", "033", "")),
    ({"question": "Even?", "answer": "yes"}, Record("Even?", "yes", "")),
    ({"question": " Share? ", "answer": 0.25}, Record("Share?", "0.25", "")),
    ({"question": "Whole?", "answer": 7.0}, Record("Whole?", "7", "")),
]


def jsonl(file: Path, rows: Sequence[object]) -> Path:
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return file


def parquet(file: Path, rows: Sequence[Row]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    return file


def source(data: Path | str, **fields: Any) -> Source:
    usual: dict[str, Any] = {"split": "train", "subset": None, "question_column": None, "answer_column": None}
    return Source("env.data", str(data), **(usual | fields))


def complaint(data: Path | str, **fields: Any) -> str:
    with pytest.raises(BadEnvironment) as caught:
        load(source(data, **fields))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def numbered(count: int, word: str = "q") -> list[Row]:
    return [{"question": f"{word}{i}?", "answer": i} for i in range(count)]


# --- good data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "record"), SHAPES)
@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.parquet", "DATA.JSONL"])
def test_known_shapes(row: Row, record: Record, name: str, tmp_path: Path) -> None:
    write = parquet if name.endswith("parquet") else jsonl
    assert load(source(write(tmp_path / name, [row]))) == (record,)


def test_columns_can_be_chosen_in_any_case(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"Prompt": "Q?", "question": "other", "answer": 1, "Result": "\\boxed{2}"}])
    (record,) = load(source(file, question_column="prompt", answer_column="Result"))
    assert (record.question, record.answer) == ("Q?", "2")


def test_a_column_of_exactly_that_name_comes_first(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"question": "Q?", "ANSWER": 1, "Answer": 2}])
    assert load(source(file, answer_column="ANSWER"))[0].answer == "1"


def test_a_folder_is_read_by_name_and_other_files_are_left_alone(tmp_path: Path) -> None:
    parquet(tmp_path / "b.parquet", numbered(2, "b"))
    jsonl(tmp_path / "c.jsonl", numbered(1, "c"))
    jsonl(tmp_path / "a.json", numbered(1, "a"))
    (tmp_path / "readme.md").write_text("no data")
    (tmp_path / "folder.jsonl").mkdir()
    assert [record.question for record in load(source(tmp_path))] == ["a0?", "b0?", "b1?", "c0?"]


def test_byte_order_mark_blank_lines_and_a_missing_last_line_end(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"question": "\xc3\xa9?", "answer": 1}\r\n\n  \n{"question": "b", "answer": 2}')
    assert [record.question for record in load(source(file))] == ["é?", "b"]


def test_long_worked_solutions_are_not_kept(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"question": "Q?", "answer": "x" * 301 + " #### 3"}])
    assert load(source(file)) == (Record("Q?", "3", ""),)


def test_many_parquet_batches(tmp_path: Path) -> None:
    found = load(source(parquet(tmp_path / "a.parquet", numbered(3000))))
    assert [record.answer for record in found] == [str(i) for i in range(3000)]


def test_files_are_read_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = jsonl(tmp_path / "a.jsonl", numbered(3))
    first = load(source(file))
    with monkeypatch.context() as patch:
        patch.setattr(records, "file_rows", lambda path: pytest.fail("read again"))
        assert load(source(file)) is first
    jsonl(file, numbered(4))
    assert len(load(source(file))) == 4


def test_threads_that_begin_together_load_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read = jsonl(tmp_path / "a.jsonl", numbered(30)), []

    def slow(path: Path) -> sources.Rows:
        read.append(path)
        time.sleep(0.2)
        return sources.file_rows(path)

    monkeypatch.setattr(records, "file_rows", slow)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: load(source(file)), range(8)))
    assert len(read) == 1
    assert all(loaded is found[0] for loaded in found)


# --- data set ids ----------------------------------------------------------------------------------------------------


def test_a_data_set_id_is_loaded_by_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str]] = []

    def fake(name: str, subset: str | None, split: str) -> list[Row]:
        asked.append((name, subset, split))
        return numbered(20, split)

    monkeypatch.setattr(sources, "load_dataset", fake)
    settings = MathSettings(data="openai/fake-gsm8k", held_out_data="openai/fake-gsm8k", subset="main")
    parts = split_records(settings)
    assert asked == [("openai/fake-gsm8k", "main", "train"), ("openai/fake-gsm8k", "main", "test")]
    assert (parts.training[3].question, parts.held_out[3].question) == ("train3?", "test3?")
    split_records(settings)
    assert len(asked) == 2


def test_the_library_takes_these_arguments(tmp_path: Path) -> None:
    """Its own loader of JSON files stands for the hub, which no test can reach."""
    jsonl(tmp_path / "train.jsonl", [GSM8K])
    program = (
        "import json; from envs.math.sources import dataset_rows\n"
        f"print(json.dumps(list(dataset_rows({str(tmp_path)!r}, None, 'train'))))"
    )
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True, check=True, timeout=60
    )
    ((place, row),) = json.loads(done.stdout)
    assert place == f"{tmp_path} (train) row 1"
    assert row == GSM8K


def test_a_data_set_that_cannot_be_loaded_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(name: str, subset: str | None, split: str) -> list[Row]:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(sources, "load_dataset", fake)
    said = complaint("some/where", split="dev")
    assert said.startswith("env.data: there is no file or folder some/where, and the data set of that id")
    assert said.endswith("(split dev, env.subset None): no network")


def test_bad_rows_of_a_data_set_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load_dataset", lambda *_: [GSM8K, {"question": "Q?", "answer": ""}])
    assert complaint("fake/empty-answer").startswith("fake/empty-answer (train) row 2: the answer in column answer")
    monkeypatch.setattr(sources, "load_dataset", lambda *_: [])
    assert complaint("fake/nothing") == "env.data: fake/nothing (train) holds no record"


# --- bad data --------------------------------------------------------------------------------------------------------


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    assert "there is no file or folder" in complaint(tmp_path / "none.jsonl")
    assert "there is no file or folder" in complaint("data/none.jsonl")
    assert "there is no file or folder" in complaint(tmp_path / "none")
    assert "there is no file or folder" in complaint("a\0b")
    assert "cannot be read" in complaint("~no-such-user/a.jsonl")
    (tmp_path / "data.csv").write_text("question,answer\n")
    assert "data.csv must end in .jsonl, .json or .parquet" in complaint(tmp_path / "data.csv")
    (tmp_path / "empty").mkdir()
    assert "holds no .jsonl, .json or .parquet file" in complaint(tmp_path / "empty")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"question": ', "no JSON"),
        (b'["Q?", 1]', "a JSON list; one object a line"),
        (b"12", "a JSON int; one object a line"),
        (b'{"question": "\xff", "answer": 1}', "not UTF-8"),
        (b"[" * 100_000, "no JSON"),
        (
            b'{"prompt": "Q?", "answer": 1}',
            "no column question or problem (env.question_column); the columns are prompt",
        ),
        (b'{"question": "Q?", "a": 1, "b": 2}', "no column answer or solution (env.answer_column); the columns are"),
        (b"{}", "the columns are (none)"),
        (b'{"question": 5, "answer": 1}', "the question in column question must be a text"),
        (b'{"question": null, "answer": 1}', "the question in column question must be a text"),
        (b'{"question": "  ", "answer": 1}', "the question in column question must be a text"),
        (b'{"question": "Q?", "answer": null}', "must be a text or a number, it is None"),
        (b'{"question": "Q?", "answer": true}', "must be a text or a number, it is True"),
        (b'{"question": "Q?", "answer": [1]}', "must be a text or a number, it is [1]"),
        (b'{"question": "Q?", "answer": "  "}', "the answer in column answer cannot be graded"),
        (b'{"question": "Q?", "answer": "It is 5. ####"}', "the answer in column answer cannot be graded"),
        (b'{"question": "Q?", "answer": "\\\\boxed{}"}', "the answer in column answer cannot be graded"),
        (b'{"question": "Q?", "answer": "$."}', "the answer in column answer cannot be graded"),
        (b'{"question": "Q?", "answer": "' + b"1" * 1001 + b'"}', "at most 1000 characters"),
        (b'{"question": "Q?", "answer": "' + b"(" * 99 + b'"}', "nested too deep"),
        (b'{"question": "' + b"x" * MAX_TEXT + b'", "answer": 1}', f"the question has {MAX_TEXT} characters"),
    ],
)
def test_a_bad_line_is_named(line: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(json.dumps(GSM8K).encode() + b"\n\n" + line + b"\n")
    said = complaint(file)
    assert said.startswith(f"{file}:3: ")
    assert words in said


def test_a_chosen_column_that_is_missing(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [GSM8K])
    assert "no column task (env.question_column); the columns are question and answer" in complaint(
        file, question_column="task"
    )


def test_bad_parquet(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no parquet at all")
    assert "broken.parquet: not a parquet file" in complaint(tmp_path / "broken.parquet")
    rows: list[Row] = [GSM8K, {"question": "Q?", "answer": None}]
    assert complaint(parquet(tmp_path / "a.parquet", rows)).startswith(f"{tmp_path}/a.parquet row 2: the answer")
    columns = parquet(tmp_path / "b.parquet", [{"text": "Q?", "label": 1}])
    assert "row 1: no column question or problem" in complaint(columns)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_an_empty_file_is_an_error_even_among_others(name: str, tmp_path: Path) -> None:
    jsonl(tmp_path / "0.jsonl", numbered(1))
    if name.endswith("parquet"):
        parquet(tmp_path / name, [GSM8K])
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(tmp_path / name).slice(0, 0), tmp_path / name)
    else:
        (tmp_path / name).write_text("\n \n")
    assert complaint(tmp_path) == f"env.data: {tmp_path / name} holds no record"


def test_held_out_data_is_named_as_such(tmp_path: Path) -> None:
    settings = MathSettings(data=str(jsonl(tmp_path / "a.jsonl", [GSM8K])), held_out_data=str(tmp_path / "b.jsonl"))
    with pytest.raises(BadEnvironment, match=r"^env\.held_out_data: there is no file"):
        Math(settings)
