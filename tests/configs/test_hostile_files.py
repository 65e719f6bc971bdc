"""Configurations are untrusted: whatever stands at their path is settings or a few lines, soon and in little memory."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.comparison import load_comparison
from configs.files import open_file, read_file
from configs.load import MOST_BYTES, MOST_PROBLEMS, ConfigError, load_config

MOST_LINE = 1000
Load = Callable[[Path], object]
LOADS: dict[str, Load] = {"run": lambda path: load_config(path, []), "comparison": load_comparison}


@pytest.fixture(params=LOADS)
def load(request: pytest.FixtureRequest) -> Load:
    return LOADS[request.param]


def problems(load: Load, path: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    said = caught.value.problems
    assert str(caught.value).splitlines() == list(said)
    assert 0 < len(said) <= MOST_PROBLEMS + 1
    assert all(len(line) <= MOST_LINE and line.isprintable() for line in said)
    return said


def file_of(folder: Path, text: str | bytes) -> Path:
    path = folder / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- what stands at the path -----------------------------------------------------------------------------------------


def test_a_pipe_is_refused_and_not_waited_for(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    os.mkfifo(path)
    assert problems(load, path) == (f"{path}: cannot be read: Is no regular file",)


def test_a_link_to_a_pipe_is_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "x.yaml").symlink_to(tmp_path / "pipe")
    assert "Is no regular file" in problems(LOADS["run"], tmp_path / "x.yaml")[0]


def test_devices_folders_and_loops_are_refused(load: Load, tmp_path: Path) -> None:
    assert "Is no regular file" in problems(load, Path("/dev/zero"))[0]
    assert "Is a directory" in problems(load, tmp_path)[0]
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    assert "Too many levels of symbolic links" in problems(load, loop)[0]
    assert "null character" in problems(load, Path("a\0b"))[0]
    assert "File name too long" in problems(load, Path("x" * 300))[0]


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    file_of(tmp_path, "run: {seed: 3}")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "x.yaml")
    assert load_config(tmp_path / "link.yaml", []).run.seed == 3


def test_a_file_is_read_up_to_its_limit_and_no_further(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"x" * 100)
    assert read_file(path, 100) == b"x" * 100
    with pytest.raises(OSError, match="Has more than 99 bytes"):
        read_file(path, 99)
    with open_file(path) as file:
        assert not os.get_inheritable(file.fileno())


def test_a_huge_file_is_refused_before_it_is_read(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with path.open("wb") as file:
        file.truncate(2**40)
    tracemalloc.start()
    assert problems(load, path) == (f"{path}: cannot be read: Has more than 65,536 bytes",)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_no_handle_is_left_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = file_of(tmp_path, "run: {seed: x}")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        problems(LOADS["run"], path)
        problems(LOADS["run"], tmp_path / "pipe")
        problems(LOADS["run"], tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


# --- what stands in it -----------------------------------------------------------------------------------------------

DOUBLED = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
HOSTILE: dict[str, str | bytes] = {
    "aliases": "a0: &a0 [x, x]\n" + DOUBLED + "run: *a59\n",
    "aliases as a value": "a0: &a0 [x, x]\n" + DOUBLED + "run: {name: *a59}\n",
    "aliases of 13 levels": "a0: &a0 [x, x]\n" + "".join(DOUBLED.splitlines(keepends=True)[:13]) + "run: *a13\n",
    "merges": "a0: &a0 {k: v}\n"
    + "".join(f"a{i}: &a{i} {{!!merge <<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60)),
    "a loop": "run: &a [*a, &b [*a, *b], {c: *b}]",
    "lists": "[" * MOST_BYTES,
    "mappings": "{a: " * 16000,
    "blocks": "- " * 30000,
    "keys": "".join(f"k{i}: 1\n" for i in range(6000)),
    "keys of a group": f"run: {{{''.join(f'k{i}: 1, ' for i in range(5000))}}}",
    "the same key": "a: 1\n" * 13000,
    "a long key": "x" * 60000 + ": 1",
    "a key of many lines": '"a\\nb\\u2028c": 1',
    "a value of many lines": 'run: {seed: "a\\nb\\u2028c"}',
    "a long number": f"run: {{seed: {'1' * 5000}}}",
    "a huge number": "run: {seed: 1e999}",
    "control characters": "run: \x1b[2J",
    "UTF-16": "run: {seed: x}".encode("utf-16"),
    "Latin-1": "run: {name: é}".encode("latin-1"),
    "zeros": b"\0" * 1000,
    "quotes": '"' * 60000,
    "anchors": "&a " * 20000,
    "documents": "--- \n" * 10000,
    "an object": "run: !!python/object/apply:os.system [id]",
    "a name": "run: !!python/name:os.system",
    **{f"tag {tag}": f"run: {{seed: {tag}}}" for tag in (
        "!!int x", '!!int ""', "!!int _", "!!bool x", "!!float x", "!!float _", "!!timestamp x", "!!map x", "!!seq x",
        "!!timestamp 2001-13-45", "!!set [a]", "!!omap x", "!!pairs x", "!!str [a]", "!!binary é", "!x y", "!!merge x",
    )},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_contents_are_a_few_lines(name: str, load: Load, tmp_path: Path) -> None:
    path = file_of(tmp_path, HOSTILE[name])
    began = time.perf_counter()
    assert all(line.startswith((f"{path}: ", "and ")) for line in problems(load, path))
    assert time.perf_counter() - began < 15  # below one on a quiet machine


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.startswith(("aliases", "merges", "a loop"))])
def test_nothing_is_doubled(name: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, HOSTILE[name])
    tracemalloc.start()
    problems(LOADS["run"], path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20


def test_aliases_that_repeat_little_are_read(tmp_path: Path) -> None:
    config = load_config(file_of(tmp_path, "optim: {lr: &rate 0.25, weight_decay: *rate}"), [])
    assert (config.optim.lr, config.optim.weight_decay) == (0.25, 0.25)


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    said = problems(LOADS["run"], file_of(tmp_path, HOSTILE["keys"]))
    assert len(said) == MOST_PROBLEMS + 1
    assert said[-1] == f"and {6000 - MOST_PROBLEMS} more problems"


@pytest.mark.parametrize("text", ["!!int x", "!!bool x", "9" * 5000, "&a [*a, *a]", "[" * 3000])
def test_overrides_are_parsed_as_carefully(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"run.seed={text}"])
    (line,) = caught.value.problems
    assert "run.seed" in line
    assert len(line) <= MOST_LINE


PIECES = (
    *(
        "run",
        "seed",
        ": ",
        "{",
        "}",
        "[",
        "]",
        "&a ",
        "*a",
        "!!int ",
        "!!map ",
        "!!set ",
        "!!binary ",
        "<<",
        "? ",
        "- ",
    ),
    *("\n", "  ", "'", '"', "|", ">", "1", ".5", "~", "null", "%", "---", "...", "#", ","),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.binary(max_size=80) | st.text(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_any_file_is_settings_or_lines(tmp_path: Path, text: str | bytes) -> None:
    path = file_of(tmp_path, text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    said: tuple[str, ...] = ()
    try:
        load_config(path, [])
    except ConfigError as error:
        said = error.problems
    assert all(line.isprintable() and str(path) in line for line in said)
    with pytest.raises(ConfigError):
        load_comparison(path)
