"""A comparison goes on from an earlier document, where its runs' folders are gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.comparison import load_comparison
from configs.load import ConfigError
from orchestration import compare
from orchestration.comparison_aggregate import as_text, document
from orchestration.comparison_known import Known, read_known
from orchestration.comparison_plan import DEFAULT_ROOT, Plan, make_plan
from orchestration.comparison_results import read_results
from orchestration.comparison_state import State, work_of
from tests.orchestration.compared_runs import COMPARISON, comparison_file, leave_run, planned

AFTER = {"one-seed-0": 0.3, "one-seed-1": 0.5, "two-seed-0": 0.6, "two-seed-1": 0.7}
CHAIN = COMPARISON.replace("  one: []", "  one: []\n  again: {after: one}")
JUDGED = COMPARISON + "evaluate: {modes: [plain], samples: 3, episodes: 4}\n"


def as_shown(path: Path) -> Plan:
    return make_plan(load_comparison(path), path, DEFAULT_ROOT, DEFAULT_ROOT)


def compared(path: Path, root: Path, known: Known | None = None) -> dict[str, Any]:
    plan = planned(path, root)
    return document(load_comparison(path), path, plan, as_shown(path), *read_results(plan), {}, known)


def earlier(path: Path, root: Path, *names: str) -> Path:
    """The document of a comparison of which these runs are finished."""
    for run in planned(path, root).runs:
        if run.name in names:
            leave_run(run.folder, run.config, success_after=AFTER[run.name])
    (root / "earlier.json").write_text(as_text(compared(path, root)))
    return root / "earlier.json"


def test_what_is_known_is_as_good_as_what_is_there(tmp_path: Path) -> None:
    """All runs in folders, or one of them known and the others in folders: the same document, but for one curve.

    The token entropies of single runs are not in a document: those of a method are, where all its seeds are known.
    """
    path = comparison_file(tmp_path)
    whole = json.loads(earlier(path, tmp_path / "whole", *AFTER).read_text())
    part = earlier(path, tmp_path / "part", "one-seed-0")
    rest = [name for name in AFTER if name != "one-seed-0"]
    earlier(path, tmp_path / "rest", *rest)
    joined = compared(path, tmp_path / "rest", read_known(part, as_shown(path)))
    assert "entropy" not in joined["methods"]["one"]["curves"]
    del whole["methods"]["one"]["curves"]["entropy"]
    assert json.loads(as_text(joined)) == whole


def test_all_known_gives_the_document_again(tmp_path: Path) -> None:
    path = comparison_file(tmp_path)
    whole = earlier(path, tmp_path / "whole", *AFTER)
    again = compared(path, tmp_path / "empty", read_known(whole, as_shown(path)))
    assert as_text(again) == whole.read_text()


def test_a_known_run_keeps_the_digest_of_the_settings_it_was_made_with(tmp_path: Path) -> None:
    path = comparison_file(tmp_path)
    text = earlier(path, tmp_path / "a", "one-seed-0").read_text()
    (tmp_path / "old.json").write_text(
        text.replace(planned(path, tmp_path).runs[0].digest, "sha256:of another version")
    )
    [first, *others] = compared(path, tmp_path / "b", read_known(tmp_path / "old.json", as_shown(path)))["runs"]
    assert first["config_digest"] == "sha256:of another version"
    assert [run["config_digest"] for run in others] == [run.digest for run in planned(path, tmp_path).runs[1:]]


def test_a_run_that_is_there_goes_before_a_known_one(tmp_path: Path) -> None:
    path = comparison_file(tmp_path)
    known = read_known(earlier(path, tmp_path / "a", "one-seed-0"), as_shown(path))
    run = planned(path, tmp_path / "b").runs[0]
    leave_run(run.folder, run.config, success_after=0.9)
    found = compared(path, tmp_path / "b", known)
    assert found["methods"]["one"]["figures"]["success_after"]["mean"] == 0.9
    assert found["methods"]["one"]["curves"]["success"]["mean"][-1] == pytest.approx(0.2 + 0.7 * 1000 / 1100)


def test_known_runs_are_not_made(tmp_path: Path) -> None:
    path = comparison_file(tmp_path, JUDGED)
    known = read_known(earlier(path, tmp_path / "a", "one-seed-0", "two-seed-1"), as_shown(path))
    work = work_of(planned(path, tmp_path / "b"), (), known.results)
    assert [task.name for task in work.tasks] == [
        "two-seed-0", "one-seed-1", "start.plain-3x4", "two-seed-0.plain-3x4", "one-seed-1.plain-3x4",
    ]  # fmt: skip
    assert list(work.states.values()) == [State.KNOWN, State.NEW, State.NEW, State.KNOWN]


def test_what_builds_on_a_known_run_lacks_its_policy(tmp_path: Path) -> None:
    path = comparison_file(tmp_path, CHAIN)
    known = read_known(earlier(path, tmp_path / "a", "one-seed-0"), as_shown(path))
    with pytest.raises(ConfigError) as caught:
        work_of(planned(path, tmp_path / "b"), (), known.results)
    assert list(caught.value.problems) == ["--known: again-seed-0 starts from the policy of one-seed-0: not there"]


def test_a_run_of_other_settings_is_not_known(tmp_path: Path) -> None:
    old = earlier(comparison_file(tmp_path), tmp_path / "a", *AFTER)
    path = comparison_file(tmp_path, COMPARISON.replace("sketches: 4", "sketches: 5"))
    assert set(read_known(old, as_shown(path)).results) == {"one-seed-0", "one-seed-1"}
    path = comparison_file(tmp_path, COMPARISON.replace("tokens: 1000", "tokens: 2000"))
    with pytest.raises(ConfigError, match="holds no finished run of this comparison"):
        read_known(old, as_shown(path))


def test_a_figure_that_is_no_number_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = comparison_file(tmp_path)
    known = earlier(path, tmp_path / "a", *AFTER)
    known.write_text(known.read_text().replace('"success_after": 0.3', '"success_after": NaN'))
    assert "NaN" in known.read_text()
    call = ["--config", str(path), "--root", str(tmp_path / "r"), "--report", "--known", str(known)]
    assert compare.main(call) == 2
    assert capsys.readouterr().err == f"error: --known {known}: is no document of a comparison\n"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"runs": [1]}', '{"runs": [{"name": "one-seed-0"}], "methods": {}}'])
def test_a_file_that_is_no_document_is_refused_in_one_line(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, known = comparison_file(tmp_path), tmp_path / "known.json"
    known.write_text(text)
    assert compare.main(["--config", str(path), "--root", str(tmp_path / "r"), "--known", str(known)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --known {known}: ")
    assert said.count("\n") == 1


def test_a_file_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = comparison_file(tmp_path)
    assert compare.main(["--config", str(path), "--root", str(tmp_path / "r"), "--known", "no.json"]) == 2
    assert "--known no.json: cannot be read" in capsys.readouterr().err


def test_the_command_reports_known_runs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = comparison_file(tmp_path)
    known, out = earlier(path, tmp_path / "a", *AFTER), tmp_path / "out.json"
    call = ["--config", str(path), "--root", str(tmp_path / "r"), "--report", "--known", str(known)]
    assert compare.main([*call, "--output", str(out)]) == 0
    assert out.read_text() == known.read_text()
