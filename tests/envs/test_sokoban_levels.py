"""Sokoban's level files: what published collections look like, and what is wrong told by file and line."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.environments import SokobanSettings
from configs.files import read_file
from envs.base import BadEnvironment
from envs.sokoban import levels
from envs.sokoban.env import Sokoban
from envs.sokoban.grid import Board, cells_of
from envs.sokoban.levels import load, parse

COLLECTION = (
    "\ufeffA collection\r\n; by nobody\r\n\r\n"
    "   ####\r\n####  ##\r\n# @$ . #\r\n########\r\nTitle: One #1\r\nAuthor: M\u00fcller\r\n\r\n"
    "; 2\r\n#####\r\n#+_$#\r\n#---#\r\n#####   \r\n"
    "Level 3\r\n"
    "  #######\r\n  # .$@ # # ###\r\n  ####### # #*#\r\n          # ###"
)


def text_of(board: Board) -> str:
    """In the common format."""
    columns = board.room.columns
    letters = ["#"] * (board.room.rows * columns)
    for cell in cells_of(board.room.floor):
        box, target = board.boxes >> cell & 1, board.room.targets >> cell & 1
        letters[cell] = "@+"[target] if cell == board.player else "$*"[target] if box else " ."[target]
    return "\n".join("".join(letters[i : i + columns]) for i in range(0, len(letters), columns))


def test_a_published_collection_loads() -> None:
    one, two, three = parse(COLLECTION, "x")
    assert text_of(one) == "########\n####  ##\n# @$ . #\n########"
    assert text_of(two) == "#####\n#+ $#\n#   #\n#####"
    # Boxes in cells of their own are decoration, and drawn as wall.
    assert text_of(three) == "#############\n# .$@ #######\n#############\n#############"
    assert parse(text_of(one), "x") == (one,)


def test_old_line_ends_and_other_encodings(tmp_path: Path) -> None:
    file = tmp_path / "a.sok"
    file.write_bytes("Für Anna\r#####\r#@$.#\r#####\r".encode("latin-1"))
    (board,) = load(str(file))
    assert (board.player, cells_of(board.boxes)) == (6, [7])


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("", 1, "no level in this file"),
        ("Title: nothing\n", 1, "no level in this file"),
        ("#####\n#@$.#\n#@  #\n#####", 3, "a second player (@) in this level; the first is in line 2"),
        ("\n#####\n# $.#\n#####", 2, "no player (@) in this level"),
        ("#####\n#@ .#\n#####", 1, "no box ($) in this level"),
        ("#####\n#@  #\n#####", 1, "no box ($) in this level"),
        ("######\n#@$$.#\n######", 1, "boxes (2) and targets (1) of this level must be as many"),
        ("#####\n#@$ #\n#####", 1, "boxes (1) and targets (0)"),
        ("####\n#@*#\n####", 1, "this level is solved already"),
        ("######\n#@$.x#\n######", 2, "unknown character 'x' in a level"),
        ("######\nx@$. #\n######", 2, "unknown character 'x' in a level"),
        ("######\n#@$.\u00fc#\n######", 2, "unknown character '\\xfc'"),
        ("#####\n#@$.\n#####", 2, "the walls around the player have a gap"),
        ("#####\n#@$.#\n## ##", 2, "the walls around the player have a gap"),
        ("##### \n#@$.# $\n#####", 2, "a box outside the walls"),
        ("##### \n#@$.# *\n#####", 2, "a box outside the walls"),
        ("##### \n#@$.# .\n#####", 2, "a target outside the walls"),
        ("#######\n#@$.#$#\n#######", 2, "a box where the player cannot get"),
        ("#######\n#@$.#.#\n#######", 2, "a target where the player cannot get"),
        ("#####  @\n# $.#\n#####", 1, "the walls around the player have a gap"),
        ("#" * 65 + "\n#@$.#\n#####", 1, "a level of 65 columns: at most 64"),
        ("#####\n#@$.#\n" + "#   #\n" * 63 + "#####", 1, "a level of more than 64 rows: split it"),
        (
            "#" * 64 + "\n#@" + " " * 61 + "#\n" + ("#" + "$." * 31 + "#\n") * 7 + "#" * 64,
            1,
            "217 boxes in this level: at most 200",
        ),
        ("#####\n#@$.#\n#####\n\n#####\n#@ .#\n#####", 5, "no box ($) in this level"),
    ],
)
def test_what_is_wrong_is_told_by_file_and_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BadEnvironment) as told:
        Sokoban(SokobanSettings(levels=str(file)))
    message = str(told.value)
    assert message.startswith(f"env.levels: {file}:{line}: {what}")
    assert "\n" not in message


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    large = tmp_path / "large.txt"
    with large.open("wb") as file:
        file.truncate(2**24 + 1)
    os.mkfifo(tmp_path / "pipe")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.md").write_text("#")
    for path, what in (
        ("none.txt", "cannot be read (No such file or directory)"),
        ("large.txt", "has more than 4 MiB"),
        ("pipe", "is neither a file nor a folder"),
        ("empty", "holds no file that ends in .txt, .sok, .xsb"),
    ):
        with pytest.raises(BadEnvironment, match=rf"env\.levels: .*{path} .*") as told:
            load(str(tmp_path / path))
        assert what in str(told.value)


def test_a_folder_is_its_files_by_name(tmp_path: Path) -> None:
    for name, cell in (("b.txt", "$. "), ("a.XSB", " $."), ("c.md", "nothing")):
        (tmp_path / name).write_text(f"######\n#@{cell}#\n######")
    first, second = load(str(tmp_path))
    assert (cells_of(first.boxes), cells_of(second.boxes)) == ([9], [8])


def test_a_file_is_read_again_once_it_changed(tmp_path: Path, reads: list[Path]) -> None:
    file = tmp_path / "a.txt"
    file.write_text("######\n#@$. #\n######")
    before = load(str(file))
    reads.clear()
    assert load(str(file))[0] is before[0]
    assert not reads
    file.write_text("######\n#@ $.#\n######")
    os.utime(file, ns=(1, 1))
    assert load(str(file)) != before
    assert reads == [file]


def folder_of(folder: Path, files: int) -> list[Path]:
    """A folder of as many files of one level, counted as they are read."""
    for i in range(files):
        (folder / f"{i:03}.txt").write_text("######\n#@$. #\n######")
    return sorted(folder.iterdir())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file read, in its order."""
    seen: list[Path] = []

    def counted(path: str, most_bytes: int) -> bytes:
        seen.append(Path(path))
        return read_file(path, most_bytes)

    monkeypatch.setattr(levels, "read_file", counted)
    return seen


def test_a_folder_of_many_files_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    files = folder_of(tmp_path, 300)
    boards = load(str(tmp_path))
    assert (len(boards), reads) == (300, files)
    assert load(str(tmp_path)) is boards
    (tmp_path / "none.txt").write_text("######\n#@ $.#\n######")
    assert len(load(str(tmp_path))) == 301
    (tmp_path / "none.txt").unlink()
    assert len(load(str(tmp_path))) == 300


def test_a_folder_is_looked_at_quickly(tmp_path: Path) -> None:
    """A tenth of what one busy core of ours does: 1,000 times a second for 100 files."""
    folder_of(tmp_path, 100)
    load(str(tmp_path))
    began = time.process_time()
    for _ in range(100):
        load(str(tmp_path))
    assert time.process_time() - began < 1


def test_threads_that_come_at_once_read_a_folder_once(tmp_path: Path, reads: list[Path]) -> None:
    folder_of(tmp_path, 100)
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(load, [str(tmp_path)] * 8))
    assert len(reads) == 100
    assert all(boards is loaded[0] for boards in loaded)


def test_the_home_folder_is_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of(tmp_path, 1)
    assert load("~/000.txt") == load("~") == load(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("levels\0.txt", "'levels\\x00.txt' cannot be read (embedded null byte)"),
        (
            "~nobody-of-that-name/a.txt",
            "~nobody-of-that-name/a.txt cannot be read (Could not determine home directory.)",
        ),
        ("no\nfile.txt", "'no\\nfile.txt' cannot be read (No such file or directory)"),
        ("a" * 5000, "a" * 900),
    ],
    ids=["nul", "user", "line", "long"],
)
def test_paths_that_are_none_are_told_on_one_line(path: str, what: str) -> None:
    with pytest.raises(BadEnvironment) as told:
        Sokoban(SokobanSettings(levels=path))
    assert str(told.value).startswith(f"env.levels: {what}")
    assert len(str(told.value).splitlines()) == 1


@given(st.text("#@+$*. -_\nx;", max_size=60) | st.text(max_size=60))
def test_any_text_is_levels_or_one_line_of_complaint(text: str) -> None:
    boards, complaint = parsed(f"#####\n#@$.#\n{text}\n#####")
    assert len(complaint.splitlines()) == (not boards)
    assert complaint.startswith("env.levels: x:"[: len(complaint)])
    for board in boards:
        assert board.boxes
        assert not board.solved
        assert board.free >> board.player & 1


def parsed(text: str) -> tuple[tuple[Board, ...], str]:
    """The levels, or the complaint about them."""
    try:
        return parse(text, "x"), ""
    except BadEnvironment as complaint:
        return (), str(complaint)


def game(file: Path, **fields: int) -> Sokoban:
    return Sokoban(SokobanSettings.model_validate({"levels": str(file), **fields}))


def test_training_and_evaluation_go_through_all_levels(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("######\n#@$. #\n######\n\n######\n#@ $.#\n######\n\n#######\n#@ $ .#\n#######\n")
    env = game(file)
    columns = []
    for seed in range(8):
        env.reset(seed=seed)
        columns.append((env.state.boxes.bit_length() - 1) % env.state.room.columns)
    assert columns == [2, 2, 3, 3, 3, 3, 2, 2]
    env.reset(seed=4)
    assert env.state.room.columns == 7
    assert env.sketch_key("push r2c7 Left") == "2,7 Left"
    assert env.sketch_key("push r2c8 Left") is None


def test_a_level_longer_than_an_episode_has_no_hope(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("########\n#@$   .#\n########")
    env = game(file, max_actions=3, actions_per_turn=3)
    env.reset(seed=0)
    assert (env.ceiling(), env.oracle(), env.optimal_length(), env.ceiling_is_exact) == (0, None, 4, True)
    env = game(file, max_actions=4, actions_per_turn=4)
    env.reset(seed=0)
    assert (env.ceiling(), env.oracle()) == (1, "Right || Right || Right || Right")


def test_a_level_no_search_gets_through_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    inner = (
        ["#" + " " * 38 + "#"] * 2 + ["#" + " $" * 18 + "  #", "#" + ". " * 18 + " @#"] + ["#" + " " * 38 + "#"] * 20
    )
    file.write_text("\n".join(["#" * 40, *inner, "#" * 40]))
    env = game(file, max_turns=200, max_actions=900)
    text, _ = env.reset(seed=0)
    assert env.observation_space.contains(text)
    length = env.optimal_length()
    assert (env.ceiling(), env.oracle(), env.ceiling_is_exact) == (0, None, False)
    assert length is not None
    assert length >= 18
    env.reset(seed=1)
    assert not env.ceiling_is_exact


def test_the_largest_level_still_fits_into_a_message(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    rows = ["#" * 64, "#@" + " " * 61 + "#", *["#" + "$." * 25 + " " * 12 + "#"] * 8, *["#" + " " * 62 + "#"] * 53]
    file.write_text("\n".join([*rows, "#" * 64]))
    env = game(file)
    text, _ = env.reset(seed=0)
    assert env.state.boxes.bit_count() == 200
    assert env.observation_space.contains(text)
    assert env.observation_space.contains(env.step("<answer>Right</answer>")[0])
