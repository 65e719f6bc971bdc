"""docs/cluster.md quotes what the program says, and calls what is there with arguments it has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from orchestration.reference import configuration_page
from orchestration.run import _parser as run_parser
from orchestration.scale import _parser as scale_parser
from orchestration.view import _parser as view_parser
from tests.configs.test_cluster_files import GPU_CONFIGS
from tests.test_troubleshooting import SOURCES

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
HANGS = PAGE.split("## When it hangs")[1]
# Text in backticks, and lines of blocks; a line that ends in a backslash goes on.
COMMANDS = [
    *re.findall(r"`([^`\n]+)`", PAGE),
    *(line.strip() for line in re.sub(r" \\\n\s+", " ", PAGE).splitlines() if line.startswith("    ")),
]
TOOLS = ("df ", "ip ", "kubectl ", "ls ", "ray ", "sqlite3 ", "sbatch ", "scancel ")
QUOTES = [text for text in re.findall(r"`([^`\n]+)`", HANGS) if " " in text and not text.startswith(TOOLS)]


@pytest.mark.parametrize("quote", [*QUOTES, "in all:"])
def test_what_is_quoted_is_said_by_the_program(quote: str) -> None:
    # Names and numbers are put into the sentence.
    parts = re.split(r"join the weight group|7/100", quote)
    assert all(any(part.strip() in source for source in SOURCES) for part in parts)


def test_the_order_begins_with_the_run_s_own_line() -> None:
    numbers = re.findall(r"^(\d)\. \*\*([^*]+)\*\*", HANGS, re.MULTILINE)
    assert [number for number, _ in numbers] == [str(n + 1) for n in range(len(numbers))]
    assert numbers[0] == ("1", "The run's last line")
    assert len(QUOTES) > 8


def test_keys_exist() -> None:
    keys = set(re.findall(r"^\| `([a-z_.]+)` \|", configuration_page(), re.MULTILINE))
    groups = {key.split(".")[0] for key in keys}
    named = {name.split("=")[0] for name in re.findall(r"`([a-z]+\.[a-z_.]+(?:=[^`]*)?)`", PAGE)}
    of_config = {name for name in named if name.split(".")[0] in groups and not name.endswith((".yaml", ".sh"))}
    assert len(of_config) > 8
    assert of_config <= keys


def calls_of(program: str) -> list[list[str]]:
    """The arguments of every call of it, without what the shell does after it."""
    found = [command.split(program, 1)[1] for command in COMMANDS if program in command]
    return [shlex.split(re.split(r" [&|>#]| \d>", rest)[0]) for rest in found]


def test_runs_are_started_with_arguments_that_the_program_has() -> None:
    calls = [*calls_of("orchestration/run.py"), *calls_of("configs/cluster/slurm.sh")]
    assert len(calls) >= 5
    for arguments in calls:
        given = run_parser().parse_args(arguments)
        assert (given.config is None) != (given.resume is None)
        if given.config is not None:
            assert given.config.parent == Path("configs/gpu")
            assert given.config.stem in GPU_CONFIGS
        # A job's own folder is cleared away.
        whole = given.resume or next(Path(word[9:]) for word in given.overrides if word.startswith("run.root="))
        assert whole.is_absolute()
    assert set(re.findall(r"`(\w+)\.yaml`", PAGE)) == GPU_CONFIGS | {"rayjob"}


def test_running_runs_are_looked_at_and_scaled_with_arguments_that_there_are() -> None:
    for arguments in calls_of("orchestration.scale"):
        assert scale_parser().parse_args(arguments).what.startswith("actors=")
    for arguments in calls_of("orchestration.view"):
        assert view_parser().parse_args(arguments)
    assert calls_of("orchestration.scale")
    assert calls_of("orchestration.view")


def options_of(words: list[str]) -> set[str]:
    """Options of one of Ray's commands; the test fails where there is no such command."""
    from ray.scripts.scripts import cli

    command: Any = cli
    for word in words:
        if not hasattr(command, "commands"):
            break
        assert word in command.commands, " ".join(words)
        command = command.commands[word]
    return {option for parameter in command.params for option in parameter.opts}


def test_ray_is_called_as_it_can_be() -> None:
    commands = [command for command in COMMANDS if re.match(r"ray [a-z]", command)]
    assert {"ray up", "ray job", "ray dashboard", "ray status"} <= {" ".join(c.split()[:2]) for c in commands}
    for command in commands:
        words = shlex.split(command.split(" -- ")[0].split(" && ")[0].split(" > ")[0], comments=True)[1:]
        flags = {word.split("=")[0] for word in words if word.startswith("--")}
        assert flags <= options_of([word for word in words if not word.startswith("-")]), command


def test_files_and_links_are_there() -> None:
    for name in re.findall(r"configs/cluster/[\w.-]+\w", PAGE):
        assert (ROOT / name).is_file(), name
    for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", PAGE):
        text = (ROOT / "docs" / target).read_text(encoding="utf-8")
        headings = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)}
        assert not anchor or anchor in headings, f"{target}#{anchor}"


@pytest.mark.parametrize("name", ["README.md", "docs/troubleshooting.md", "docs/untrusted.md"])
def test_it_is_found(name: str) -> None:
    assert "cluster.md" in (ROOT / name).read_text(encoding="utf-8")
