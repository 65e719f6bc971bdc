"""Atlases: invented names, files of names good and bad, hidden targets, and how a region is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.base import BadEnvironment
from envs.path_exploration import atlas as atlas_module
from envs.path_exploration import names_file
from envs.path_exploration.atlas import SLASH, Atlas, draw, folded, fork, hidden_targets, invented, of_levels
from envs.path_exploration.names_file import read_names
from envs.path_exploration.reading import read_region, split_path

ROOT = Path(__file__).resolve().parents[2]
TREE = {"Alba": {"Birken": ["Corrow", "Dun"], "Elm": ["Fen"]}, "Gorse": {"Birken": ["Hay", "Ivy", "Jura"]}}
TREE_PATHS = [
    ("Alba", "Birken", "Corrow"),
    ("Alba", "Birken", "Dun"),
    ("Alba", "Elm", "Fen"),
    ("Gorse", "Birken", "Hay"),
    ("Gorse", "Birken", "Ivy"),
    ("Gorse", "Birken", "Jura"),
]


def written(folder: Path, data: Any) -> str:
    """A file of names; `data` as it is if it is bytes or text, else as JSON."""
    file = folder / "names.json"
    if isinstance(data, bytes):
        file.write_bytes(data)
    else:
        file.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return str(file)


# --- atlases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", range(1, 7))
@pytest.mark.parametrize("branching", [2, 8, 17, 64])
def test_invented_names_differ_everywhere_and_are_short_words(depth: int, branching: int) -> None:
    levels = invented(depth, branching).levels
    assert levels is not None
    assert [len(level) for level in levels] == [branching] * depth
    names = [name for level in levels for name in level]
    assert len({name.lower() for name in names}) == depth * branching
    assert all(name.isascii() and name.isalpha() and name == name.capitalize() and len(name) <= 6 for name in names)


def test_a_level_has_its_names_whatever_the_other_settings() -> None:
    small, large = invented(2, 3), invented(6, 64)
    assert small.levels is not None
    assert large.levels is not None
    assert small.levels == tuple(level[:3] for level in large.levels[:2])
    assert small.levels == (("Badorn", "Dedorn", "Fidorn"), ("Keveth", "Liveth", "Moveth"))


def test_paths_are_numbered_first_level_first() -> None:
    atlas = of_levels("it", [["A", "B"], ["C", "D", "E"]])
    assert atlas.paths == 6
    assert [atlas.first.path(n) for n in range(6)] == list(product("AB", "CDE"))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_any_grid_numbers_each_of_its_paths_once(widths: list[int]) -> None:
    levels = [[f"{level}x{place}" for place in range(width)] for level, width in enumerate(widths)]
    atlas = of_levels("it", levels)
    assert [atlas.first.path(n) for n in range(atlas.paths)] == list(product(*levels))


def test_an_uneven_tree_numbers_each_of_its_paths_once() -> None:
    tree = fork(["A", "B", "C"], [fork(["p"]), fork(["q", "r", "s"]), fork(["t"])])
    assert [tree.path(n) for n in range(tree.paths)] == [("A", "p"), ("B", "q"), ("B", "r"), ("B", "s"), ("C", "t")]


def test_more_paths_than_memory_holds_cost_nothing() -> None:
    atlas = invented(6, 64)
    assert atlas.paths == 64**6
    assert atlas.levels is not None
    assert atlas.first.path(64**6 - 1) == tuple(level[-1] for level in atlas.levels)
    assert len(hidden_targets(atlas, 0, 50).all) == 50


# --- hidden targets --------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.data())
def test_a_draw_gives_different_numbers_of_the_population(population: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, population))
    drawn = draw("any", population, count)
    assert len(set(drawn)) == len(drawn) == count
    assert set(drawn) <= set(range(population))
    assert draw("any", population, population)[:count] == drawn


def test_every_number_is_drawn_about_as_often() -> None:
    counts = Counter(number for key in range(2000) for number in draw(f"key {key}", 10, 3))
    assert len(counts) == 10
    assert all(abs(count / 6000 - 0.1) < 0.02 for count in counts.values())


def test_targets_are_the_same_for_ever() -> None:
    """Written down once: a change of these changes the task, and no figure could be compared any more."""
    assert hidden_targets(invented(3, 8), 0, 20).drawn[:3] == (
        "Fidorn / Soveth / Talusk",
        "Lidorn / Keveth / Solusk",
        "Hadorn / Soveth / Solusk",
    )


def test_targets_differ_between_maps_and_do_not_depend_on_the_process() -> None:
    atlas = invented(3, 8)
    maps = {hidden_targets(atlas, number, 20).all for number in range(30)}
    assert len(maps) == 30
    assert all(len(targets) == 20 for targets in maps)
    program = (
        "from envs.path_exploration.atlas import hidden_targets, invented; "
        "print(*hidden_targets(invented(3, 8), 7, 20).drawn, sep='|')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "5"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert tuple(done.stdout.strip().split("|")) == hidden_targets(atlas, 7, 20).drawn


def test_all_paths_can_be_targets() -> None:
    atlas = of_levels("it", [["A", "B"], ["C", "D"]])
    assert hidden_targets(atlas, 0, 4).all == {"A / C", "A / D", "B / C", "B / D"}


def test_targets_are_kept_for_the_maps_asked_for_last_and_few_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def counted(key: str, population: int, count: int) -> list[int]:
        drawn.append(key)
        return draw(key, population, count)

    monkeypatch.setattr(atlas_module, "draw", counted)
    monkeypatch.setattr(atlas_module, "_TARGETS_KEPT", 60)
    monkeypatch.setattr(atlas_module, "_MAPS_KEPT", 4)
    atlas = of_levels("it", [[f"a{n}" for n in range(20)], [f"b{n}" for n in range(20)]])
    asked = [(0, 20), (1, 20), (2, 20), (0, 20), (3, 20), (0, 20), (1, 20), (5, 200), (5, 200), (0, 20)]
    assert [len(hidden_targets(atlas, *each).all) for each in asked] == [count for _, count in asked]
    # Map 1 made room for map 3 and all of them for the 200 of map 5, which leave room for no other.
    assert drawn == [f"map {number}" for number in (0, 1, 2, 3, 1, 5, 0)]
    drawn.clear()
    for number in (0, 1, 2, 3, 4, 1, 0):
        hidden_targets(atlas, number, 2)
    assert drawn == [f"map {number}" for number in (0, 1, 2, 3, 4, 0)]


def test_threads_that_ask_for_many_maps_at_once_get_them() -> None:
    atlas = of_levels("it", [[f"a{n}" for n in range(20)], [f"b{n}" for n in range(20)]])
    wanted = [number % 300 for number in range(1200)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: hidden_targets(atlas, number, 3), wanted))
    assert found == [hidden_targets(atlas, number, 3) for number in wanted]


# --- files of names --------------------------------------------------------------------------------------------------


def test_lists_are_levels(tmp_path: Path) -> None:
    atlas = read_names(written(tmp_path, [["New York", " Málaga "], ["x-ray", "St.  Ives", "Ödön"]]))
    assert atlas.levels == (("New York", "Málaga"), ("x-ray", "St. Ives", "Ödön"))
    assert (atlas.depth, atlas.paths) == (2, 6)


def test_objects_are_a_tree(tmp_path: Path) -> None:
    atlas = read_names(written(tmp_path, TREE))
    assert (atlas.depth, atlas.paths, atlas.levels) == (3, 6, None)
    assert [atlas.first.path(n) for n in range(6)] == TREE_PATHS
    assert atlas.walked(["gorse", "birken", "corrow"])[0] == ("Gorse", "Birken")


def test_one_level_is_enough(tmp_path: Path) -> None:
    assert read_names(written(tmp_path, [["A", "B", "C"]])).paths == 3


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    assert read_names(written(tmp_path, b"\xef\xbb\xbf" + b'[["A"], ["B"]]')).paths == 1


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path = written(tmp_path, [["A"], ["B"]])
    first = read_names(path)
    assert read_names(path) is first
    written(tmp_path, [["A", "C"], ["B"]])
    assert read_names(path).paths == 2


def test_threads_read_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, path = [], written(tmp_path, [["A"], ["B"]])

    def slowly(source: str, file: Path) -> Any:
        parsed.append(source)
        time.sleep(0.05)
        return json.loads(file.read_text())

    monkeypatch.setattr(names_file, "_parsed", slowly)
    with ThreadPoolExecutor(8) as threads:
        atlases: set[Atlas] = set(threads.map(read_names, [path] * 8))
    assert parsed == [path]
    assert len(atlases) == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('[["A"],\n ["B",]]', ", line 2, column 7: "),
        ("", ", line 1, column 1: Expecting value"),
        (b'[["A\xff"]]', ": byte 4 is not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "cannot be read"),
        ("3", "is neither a list of lists nor an object"),
        ("null", "is neither a list of lists nor an object"),
        ([], "has 0 levels"),
        ([["A"]] * 17, "has 17 levels: write 1 to 16 lists"),
        (["A", "B"], ": [0] is a text: write a list of names for each level"),
        ([["A"], {"B": ["C"]}], ": [1] is an object"),
        ([["A"], ["B", 3]], ": [1][1] is a number: write a name"),
        ([["A"], ["B", True]], ": [1][1] is true or false"),
        ([["A"], ["B", None]], ": [1][1] is null"),
        ([["A"], ["B", ["C"]]], ": [1][1] is a list"),
        ([["A"], []], ": [1] is empty"),
        ([["A"], ["B", "C", "b"]], ": [1][2] b is there already"),
        ([["A  b", "a B"]], ": [0][1] a B is there already"),
        ([["A", "  "]], ": [0][1] is an empty name"),
        ([["A" * 65]], ": [0][0] has 65 characters: at most 64"),
        *(([["A", name]], ": [0][1] ") for name in ("a/b", "a||b", "a<b", "a>b", "a\nb", "a\rb", "a - b", "a\u2028b")),
        ([["\ud800"]], ": [0][0] "),
        ({}, "is empty"),
        ({"A": []}, ': ["A"] is empty'),
        ({"A": {}}, ': ["A"] is empty'),
        ({"A": "B"}, ': ["A"] is a text: write an object, or a list'),
        ({"A": ["B"], "C": {"D": 4}}, ': ["C"]["D"] is a number'),
        ({"A": ["B", "b"]}, ': ["A"][1] b is there already'),
        ({"A": {"B": ["C"]}, "D": ["E"]}, ': ["D"] is 1 deep and ["A"] 2: make all of one depth'),
        ('{"A": ["B"], "A": ["C"]}', ': ["A"] A is there already'),
        ('{"A": ["B"], "a": ["C"]}', ': ["a"] a is there already'),
        ('{"A/": ["B"]}', ': ["A/"] A/ holds'),
        ('{"A":' * 16 + '["B"]' + "}" * 16, "lies too deep: at most 16 levels"),
    ],
)
def test_a_bad_file_is_told_in_one_line(data: Any, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, data)
    with pytest.raises(BadEnvironment) as caught:
        read_names(path)
    message = str(caught.value)
    assert message.startswith(f"env.names: {path}")
    assert said in message
    assert "\n" not in message
    assert ": " in message.removeprefix(f"env.names: {path}")


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "none.json", "No such file"),
        (tmp_path, "is not a file"),
        ("a\0b", "null byte"),
        ("~nobodyhere/x.json", "~nobodyhere/x.json: .* home directory.*: name a JSON file$"),
    ):
        with pytest.raises(BadEnvironment, match=said):
            read_names(str(path))


def test_too_large_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, [["A", "B"], ["C", "D", "E"]])
    assert names_file.MOST_BYTES <= 10**7
    monkeypatch.setattr(names_file, "MOST_NAMES", 4)
    with pytest.raises(BadEnvironment, match="more than 4 names"):
        read_names(path)
    monkeypatch.setattr(names_file, "MOST_BYTES", 10)
    with pytest.raises(BadEnvironment, match=r"has \d+ bytes, more than 10"):
        read_names(path)


def test_too_many_paths_are_told(tmp_path: Path) -> None:
    names = [f"n{n}" for n in range(100)]
    assert read_names(written(tmp_path, [names] * 9)).paths == names_file.MOST_PATHS
    with pytest.raises(BadEnvironment, match="more than 1e\\+18 paths"):
        read_names(written(tmp_path, [names] * 10))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=150)
@given(data=JSON)
def test_any_json_is_an_atlas_or_one_line(data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = written(folder, data)
    try:
        atlas = read_names(path)
    except BadEnvironment as caught:
        refusal = str(caught)
    else:
        refusal = "one line"
        assert len({tuple(map(folded, atlas.first.path(n))) for n in range(atlas.paths)}) == atlas.paths
    assert len(refusal.splitlines()) == 1


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Alba/Birken/Corrow", ["Alba", "Birken", "Corrow"]),
        ("  Alba /\tBirken/  Corrow ", ["Alba", "Birken", "Corrow"]),
        ("Alba > Birken -> Corrow", ["Alba", "Birken", "Corrow"]),
        ("Alba - Birken - Corrow", ["Alba", "Birken", "Corrow"]),
        ("Al-ba / Bir-ken - Cor-row", ["Al-ba", "Bir-ken", "Cor-row"]),
        ("Alba / Birken", None),
        ("Alba / Birken / Corrow / Dun", None),
        ("Alba // Corrow", None),
        ("/ Alba / Birken", None),
        ("Alba / Birken /", None),
        ("", None),
        (">" * 10**6, None),
        (" " * 10**6, None),
    ],
)
def test_paths_are_split(text: str, names: list[str] | None) -> None:
    found = split_path(text, 3)
    assert (found if found is None else [name.strip() for name in found]) == names


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("in Alba / Birken", ("Alba", "Birken")),
        ("in Alba", ("Alba",)),
        ("ALBA>elm > fen", ("Alba", "Elm", "Fen")),
        ("Let me look in gorse / birken first.", ("Gorse", "Birken")),
        ("**Alba** / 'Elm'\nThat may be good.", ("Alba", "Elm")),
        ("in Alba, then Gorse", ("Alba",)),
        ("in Alba / Nowhere / Corrow", None),
        ("in Alba / Birken / Hay", None),
        ("in Gorse / Elm", None),
        ("in Alba /", None),
        ("Alba / Elm / Fen / more / of / it", None),
        ("in Birken", None),
        ("in Nowhere / Alba", None),
        ("/ Alba", None),
        ("Albatross", None),
        ("", None),
        ("in " * 10**5, None),
        ("/" * 10**6, None),
    ],
)
def test_regions_are_read(text: str, region: tuple[str, ...] | None, tmp_path: Path) -> None:
    assert read_region(text, read_names(written(tmp_path, TREE))) == region


def test_names_of_several_words_are_read_whole() -> None:
    atlas = of_levels("it", [["In", "New York", "York"], ["St. Ives", "D.C."]])
    assert read_region("in New York / St. Ives", atlas) == ("New York", "St. Ives")
    assert read_region("in the York area / at D.C. then", atlas) == ("York", "D.C.")
    assert read_region("in In / D.C.", atlas) == ("In", "D.C.")


@given(st.integers(0, 511), st.integers(1, 3), st.sampled_from(["in {}", "{}.", "IN {}", "region {}, I think"]))
def test_every_region_reads_back(number: int, length: int, words: str) -> None:
    atlas = invented(3, 8)
    region = atlas.first.path(number)[:length]
    assert read_region(words.format(SLASH.join(region)), atlas) == region


@given(st.text())
def test_any_text_is_a_region_or_none(text: str) -> None:
    region = read_region(text, invented(3, 8))
    assert region is None or 1 <= len(region) <= 3
