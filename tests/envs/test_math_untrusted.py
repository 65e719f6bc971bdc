"""The process that grades reads what a policy wrote: it evaluates none of it, writes no file, knows no secret."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sympy

from configs.environments import MathSettings
from envs.base import Failure
from envs.math.grader import Grader
from envs.math.grader_process import atom_of
from envs.registry import make_env
from envs.trajectory import Verdict
from tests.envs.test_math_answers import DIFFERENT, EQUAL

ROOT = Path(__file__).resolve().parents[2]
CODE = "__import__('os').system('touch {file}')"
# The file has to be made, if it is, by what looks like each of these.
HOSTILE = [
    *("{code}", "\\text{{{code}}}", "\\mathrm{{{code}}}", "x={code}", "1+{code}", "\\operatorname{{exec}}({code})"),
    *("\\begin{{pmatrix}}{code}\\end{{pmatrix}}", "\\{{{code}\\}}", "[1,{code})", "\\frac{{1}}{{{code}}}", "{code}\\%"),
    *("\\log_{{{code}}}2", "x_{{{code}}}", "\\sqrt[{code}]{{2}}", "lambda: {code}", "\\boxed{{{code}}}"),
    *("0 if {code} else 1", "'+{code}+'"),
]

# Runs the judge, and says what of Python was compiled or run meanwhile that comes from no file.
AUDITED = """
import json, sys
from envs.math.grader_process import load_judge
equal = load_judge()
seen, on = [], True
STARTS = ("subprocess", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.")
def hook(event, arguments):
    if on and event == "compile" and str(arguments[1]).startswith("<"):
        seen.append([event, repr(arguments[0])[:200]])
    elif on and event.startswith(STARTS):
        seen.append([event])
    elif on and event == "open" and arguments[1] and set(arguments[1]) & set("wax+"):
        seen.append([event, str(arguments[0])])
sys.addaudithook(hook)
said = [equal(*pair) for pair in json.load(sys.stdin)]
on = False
print(json.dumps([seen, said]))
"""


def judged(pairs: list[tuple[str, str]]) -> tuple[list[list[str]], list[bool]]:
    done = subprocess.run(
        [sys.executable, "-c", AUDITED], cwd=ROOT, input=json.dumps(pairs), capture_output=True, text=True, check=True,
        timeout=120, env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    seen, said = json.loads(done.stdout.splitlines()[-1])
    return seen, said


def test_no_text_is_evaluated(tmp_path: Path) -> None:
    """Neither code nor the numbers of an answer: the library's way with them is to evaluate `Integer (72 )`."""
    file = tmp_path / "made"
    hostile = [text.format(code=CODE.format(file=file)) for text in HOSTILE]
    pairs = [("x+1", text) for text in hostile] + [(text, "x+1") for text in hostile] + [*EQUAL, *DIFFERENT]
    seen, said = judged(pairs)
    # The library writes code of its own for products of powers: of small whole numbers, not of text.
    assert [found for found in seen if not found[-1].startswith("b'def monomial_")] == []
    assert not any("system" in found[-1] for found in seen)
    assert not file.exists()
    assert not any(said[: 2 * len(hostile)])
    assert sum(said) > len(EQUAL) / 3  # the rest is decided before, by texts and numbers


@pytest.mark.parametrize(
    ("text", "value"), [("72", "72"), ("0", "0"), ("000", "0"), ("0.5", "0.5"), (" .5\n", "0.5"), ("72.", "72.0")]
)
def test_numbers_are_read(text: str, value: str) -> None:
    assert atom_of(text, {}, evaluate=True) == sympy.sympify(value)
    assert type(atom_of(text)) is type(sympy.sympify(value))


def test_names_are_symbols_whatever_they_name() -> None:
    assert [atom_of(name) for name in ("kilo", "exec", "lambda", "E")] == sympy.symbols(["kilo", "exec", "lambda", "E"])


@pytest.mark.parametrize(
    "text",
    [
        "072",
        "1+1",
        "x y",
        "x.y",
        "x()",
        "__import__('os')",
        "1.5.2",
        "",
        ".",
        "\u0661",
        "1\n2",
        "1_0",
        "0x1",
        "1j",
    ],
)
def test_nothing_else_is(text: str) -> None:
    with pytest.raises(SyntaxError, match="only numbers and names"):
        atom_of(text)


def test_it_writes_no_file_and_knows_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    grader = Grader(512)
    try:
        assert grader.equal("x+1", "1+x", 20)
        proc = Path(f"/proc/{grader.process_id}")
        limits = proc.joinpath("limits").read_text().splitlines()
        found = {line[:26].strip(): line[26:].split()[:2] for line in limits}
        assert found["Max file size"] == ["0", "0"]
        assert found["Max core file size"] == ["0", "0"]
        assert int(found["Max address space"][1]) < 4 * 2**30
        environment = proc.joinpath("environ").read_bytes()
        assert b"PYTHONHASHSEED=0" in environment
        assert b"WANDB" not in environment
        assert b"0123456789abcdef" not in environment
    finally:
        grader.close()


@pytest.mark.parametrize(
    "cause", ["grading an answer took longer than 2 s (env.grade_timeout_s)", "the grading process died"]
)
def test_a_grader_that_fails_makes_the_episode_failed_and_never_wrong(
    cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "one.jsonl"
    data.write_text(json.dumps({"question": "What?", "answer": "x+1"}) + "\n")

    def fail(*_: object) -> bool:
        raise Failure(cause)

    monkeypatch.setattr("envs.math.grading.Graders.equal", fail)
    monkeypatch.setattr("envs.math.grading.Graders.start", lambda _: None)
    env = make_env(MathSettings(data=str(data)))
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("<answer>y+1</answer>")
    assert (info["outcome"].verdict, info["outcome"].cause, reward, terminated) == (Verdict.FAILED, cause, 0.0, True)
