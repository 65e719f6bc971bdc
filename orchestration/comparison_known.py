"""Runs that an earlier document of the same comparison holds: they need not be made again (`compare --known`)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.load import ConfigError
from orchestration.comparison_plan import Plan
from orchestration.comparison_results import ResultError, RunResult, read_json
from orchestration.comparison_run import shown_command


@dataclass(frozen=True, slots=True)
class Known:
    """results, digests: by name of the run; a digest is of the settings the run was made with.

    curves: method -> seeds and the means of their curves, as the document has them.
    """

    results: Mapping[str, RunResult] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, tuple[list[int], Any]] = field(default_factory=dict)

    def curves_of(self, method: str, finished: Collection[int]) -> Any | None:
        """The curves over just these seeds; None where the document has others."""
        seeds, curves = self.curves.get(method, ([], None))
        return curves if sorted(seeds) == sorted(finished) else None


def read_known(path: Path, plan: Plan) -> Known:
    """Those runs of `plan` (with folders as commands show them) that are finished there under the same command.

    A command holds all that the comparison sets; what it leaves to defaults may have been another thing in an earlier
    version: then the digests of the settings differ. Raises ConfigError when the file is no such document.
    """
    try:
        document = read_json(path)
        json.dumps(document, allow_nan=False)  # what is no number could not be written again
        commands = {run.name: shown_command(run.arguments) for run in plan.runs}
        finished = [run for run in document["runs"] if run["status"] == "finished"]
        ours = [run for run in finished if commands.get(run["name"]) == run["command"]]
        results = {str(run["name"]): _result(run) for run in ours}
        digests = {str(run["name"]): str(run["config_digest"]) for run in ours}
        curves = {
            str(name): ([int(seed) for seed in method["finished_seeds"]], method["curves"])
            for name, method in document["methods"].items()
        }
    except ResultError as error:
        raise ConfigError([f"--known {error}"]) from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ConfigError([f"--known {path}: is no document of a comparison"]) from None
    if not results:
        raise ConfigError([f"--known {path}: holds no finished run of this comparison"])
    return Known(results, digests, curves)


def _result(run: Mapping[str, Any]) -> RunResult:
    figures = {str(name): float(value) for name, value in run["figures"].items()}
    curves = {str(n): [(float(x), float(y)) for x, y in points] for n, points in run["evaluations"].items()}
    return RunResult(dict(run["summary"]), figures, {name: points for name, points in curves.items() if points})
