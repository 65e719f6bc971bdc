"""Entry point: `python -m orchestration.reference` writes the files that are read off the program itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.schema import RunConfig
from learner.durable import replace_durably
from orchestration.grafana import dashboard
from orchestration.metrics_table import HeldOutMetrics, Metric, UpdateMetrics, metrics_table

ROOT = Path(__file__).resolve().parent.parent
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_METRICS_HEAD = """# Metrics

Every figure of a run has one definition, `orchestration/metrics_table.py`, from which this page is made
(`python -m orchestration.reference`). Figures go, under the same names, to

- `metrics.jsonl` and `evaluations.jsonl` in the run's folder: a line an update, a line an evaluation;
- Ray's metrics endpoint, and so Prometheus: gauges `ray_sesa_NAME` and `ray_sesa_held_out_NAME` with the tags `run`,
  `env` and `sampler` (`observe.ray_metrics`);
- TensorBoard (`tensorboard --logdir runs`): `training/NAME`, `held_out/NAME` against updates (`observe.tensorboard`);
- Weights & Biases, where its package is installed: the same two against `update` (`observe.wandb=PROJECT`).

A figure that is no number is `null` in the files and left out elsewhere: a gauge then keeps its last value. A tracker
that fails is said once and left out; it never ends a run. `run.stop` and `checkpoint.best_by` take any name of the
first table.
"""
_CONFIG_HEAD = """# Configuration

All keys of a run's configuration, made from the schema (`python -m orchestration.reference`). A YAML file under
`configs/` sets what differs from the defaults, and `key=value` on the command line what differs from the file; lists
and mappings are written as in YAML (`sampler='{name: sesa, sketches: 4}'`). An unknown key is refused with the nearest
match, and all mistakes are said at once; `--dry-run` prints the whole configuration as a run would use it. *empty*
stands for `null`.
"""


def metrics_page() -> str:
    """docs/metrics.md."""
    tables = (
        (
            "Each update",
            "Of the update's batch unless said otherwise; cumulative: from the run's start.",
            UpdateMetrics,
        ),
        ("Each evaluation", "On held-out episodes, with the plain prompt, without sketches.", HeldOutMetrics),
    )
    parts = [_METRICS_HEAD]
    for title, words, kind in tables:
        parts.append(f"\n## {title}\n\n{words}\n\n{_metrics_rows(metrics_table(kind))}")
    return "".join(parts)


def configuration_page() -> str:
    """docs/configuration.md."""
    schema = RunConfig.model_json_schema()
    sections = _Sections(schema["$defs"])
    for name, group in schema["properties"].items():
        sections.add(name, group)
    return _CONFIG_HEAD + "".join(sections.texts)


def dashboard_page() -> str:
    """configs/monitoring/dashboard.json."""
    return json.dumps(dashboard(), indent=1) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/metrics.md": metrics_page,
    "docs/configuration.md": configuration_page,
    "configs/monitoring/dashboard.json": dashboard_page,
}


def main() -> int:
    for name, page in PAGES.items():
        replace_durably(ROOT / name, page().encode())
        print(name)
    return 0


def _metrics_rows(table: Sequence[Metric]) -> str:
    rows = (f"| `{m.name}` | {m.unit} | {_cell(m.meaning)} | {_cell(m.healthy)} |" for m in table)
    return _table(("name", "unit", "meaning", "healthy"), rows)


class _Sections:
    """A section a group of keys; kinds of settings that come up again are told once."""

    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions, self._told = definitions, dict[str, str]()
        self.texts: list[str] = []

    def add(self, path: str, schema: dict[str, Any]) -> None:
        """What a key holds: settings, or one of several kinds of them."""
        for reference in self._kinds(schema):
            kind = reference.rsplit("/", 1)[1]
            settings = self._definitions[kind]
            name = settings["properties"].get("name", {}).get("const")
            title = f"{path}, name: {name}" if name else path
            if kind in self._told:
                self.texts.append(f"\n## {title}\n\nThe keys of *{self._told[kind]}*.\n")
                continue
            self._told[kind] = title
            self._tell(path, title, settings)

    def _tell(self, path: str, title: str, settings: dict[str, Any]) -> None:
        leaves, inner = [], []
        for name, one in settings["properties"].items():
            if "const" in one:
                continue
            if self._kinds(one):
                inner.append((f"{path}.{name}", one))
            else:
                leaves.append(
                    f"| `{path}.{name}` | {_kind(one)} | {_value(one)} | {_cell(one.get('description', ''))} |"
                )
        about = f"\n{settings['description']}\n" if "description" in settings else ""
        if leaves:
            self.texts.append(f"\n## {title}\n{about}\n{_table(('key', 'values', 'default', 'meaning'), leaves)}")
        elif about:
            self.texts.append(f"\n## {title}\n{about}")
        for inner_path, one in inner:
            self.add(inner_path, one)

    def _kinds(self, schema: dict[str, Any]) -> list[str]:
        """References to the settings a key may hold, none for a plain value."""
        options = [schema, *schema.get("oneOf", ()), *schema.get("anyOf", ())]
        found = [one["$ref"] for one in options if "$ref" in one]
        return [one for one in found if "properties" in self._definitions[one.rsplit("/", 1)[1]]]


def _kind(schema: dict[str, Any]) -> str:
    """Which values a key takes."""
    if "anyOf" in schema:
        kinds = [_kind(one) for one in schema["anyOf"] if one.get("type") != "null"]
        empty = any(one.get("type") == "null" for one in schema["anyOf"])
        return " or ".join([*kinds, *(["empty"] if empty else [])])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join(
        [{"string": "text"}.get(schema.get("type", ""), schema.get("type", "any")), ", ".join(bounds)]
    ).strip()


def _value(schema: dict[str, Any]) -> str:
    if "default" not in schema:
        return "required"
    value = schema["default"]
    return "empty" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _table(head: Sequence[str], rows: Sequence[str] | Iterator[str]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
