"""The comparison as Markdown: a table of the methods, one of the final judge for each mode, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.comparison import START
from orchestration.charts import short

Figures = Mapping[str, Mapping[str, Any]]


def plain(value: float) -> str:
    return f"{value:.3f}"


def signed(value: float) -> str:
    return f"{value:+.3f}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column and the figure it shows. against: of the differences to the first method. spread: with the interval."""

    head: str
    figure: str
    form: Callable[[float], str] = plain
    against: bool = False
    spread: bool = True


def markdown(document: Mapping[str, Any], plots: Sequence[str]) -> str:
    """plots: file names of the pictures, shown behind the tables."""
    first, ks = document["first"], _ks(document, "pass_at_", "_after")
    columns = [
        Column("success before", "success_before", spread=False),
        Column("after", "success_after"),
        Column("gain", "success_gain", signed),
        Column(f"gain above {first}", "success_gain", signed, against=True),
        Column("coverage after", "coverage_after"),
        Column(f"above {first}", "coverage_after", signed, against=True),
        Column("distinct solutions", "distinct_solutions_after"),
        *(Column(f"pass@{k}", f"pass_at_{k}_after") for k in ks[-1:]),
        Column("answer entropy", "answer_entropy_after"),
        Column("generated tokens", "generated_tokens", short, spread=False),
        Column("environment steps", "env_steps", short, spread=False),
        Column("wall time, s", "wall_s", short, spread=False),
        Column("sampled tokens/s", "rollout_tokens_per_s", short, spread=False),
    ]
    parts = [
        f"# {document['name']}: {', '.join(document['methods'])}",
        f"`{document['command']}`",
        f"{short(document['budget_tokens'])} generated tokens a run, seeds {', '.join(map(str, document['seeds']))}. "
        "Mean over seeds (95 % interval, Student's t); differences are paired by seed.",
        _table(columns, _method_rows(document)),
        *_ratios(document),
        *_judged(document),
        *_notes(document),
        *(f"![{name}]({name})" for name in plots),
    ]
    return "\n\n".join(parts) + "\n"


def _judged(document: Mapping[str, Any]) -> Iterator[str]:
    """A table a mode of the final judge, with a row for the policy of the base configuration."""
    for mode in _modes(document):
        ks = _ks(document, f"{mode}.pass_at_", "")
        shown = [k for k in ks if k in (1, 16) or k == ks[-1]]
        columns = [
            Column("success", f"{mode}.success"),
            *(Column(f"pass@{k}", f"{mode}.pass_at_{k}") for k in shown),
            Column("pass@16 / pass@1", f"{mode}.pass_ratio"),
            Column("coverage", f"{mode}.coverage"),
            *(
                Column(f"coverage@{k}", f"{mode}.coverage_at_{k}")
                for k in _ks(document, f"{mode}.coverage_at_", "")[-1:]
            ),
            Column("distinct solutions", f"{mode}.distinct_solutions"),
            Column("answer entropy", f"{mode}.answer_entropy"),
        ]
        rows = _method_rows(document)
        if mode in document["start"]:
            values = {f"{mode}.{name}": {"mean": v, "low": None} for name, v in document["start"][mode].items()}
            rows = [(START, "", values, {}, 0), *rows]
        yield f"## Final judge, {mode}"
        yield _table(columns, rows)


Row = tuple[str, str, Figures, Figures, int]  # method, its seeds, figures, differences, seeds each should have


def _method_rows(document: Mapping[str, Any]) -> list[Row]:
    return [
        (name, f"{len(m['finished_seeds'])} of {len(document['seeds'])}", m["figures"], m["against_first"],
         len(m["finished_seeds"]))
        for name, m in document["methods"].items()
    ]  # fmt: skip


def _table(columns: Iterable[Column], rows: Sequence[Row]) -> str:
    """Columns that no row has a value for are left out."""
    kept = [c for c in columns if any(c.figure in (row[3] if c.against else row[2]) for row in rows)]
    lines = ["| method | seeds | " + " | ".join(c.head for c in kept) + " |", "|---" * (len(kept) + 2) + "|"]
    for name, seeds, figures, against, finished in rows:
        cells = [
            _cell(column, (against if column.against else figures).get(column.figure), finished) for column in kept
        ]
        lines.append(f"| {name} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(column: Column, value: Mapping[str, Any] | None, finished: int) -> str:
    """A mean and its interval; over how many seeds, where those are fewer than the method's finished ones."""
    if value is None:
        return ""
    text = column.form(value["mean"])
    if column.spread and value["low"] is not None:
        text += f" ({column.form(value['low'])} to {column.form(value['high'])})"
    return f"{text}, {value['seeds']} only" if value.get("seeds", finished) < finished else text


def _ratios(document: Mapping[str, Any]) -> Iterator[str]:
    first = document["first"]
    ratios = {n: m["gain_ratio"] for n, m in document["methods"].items() if n != first and m["gain_ratio"] is not None}
    if ratios:
        told = "; ".join(f"{name} {_ratio(ratio)}" for name, ratio in ratios.items())
        yield f"Mean gain over {first}'s of the same seeds (95 % interval, Fieller; each seed's): {told}."


def _ratio(ratio: Mapping[str, Any]) -> str:
    bounds = "no bounded interval" if ratio["low"] is None else f"{ratio['low']:.2f} to {ratio['high']:.2f}"
    each = ", ".join("none" if value is None else f"{value:.2f}" for value in ratio["by_seed"].values())
    return f"{ratio['mean']:.2f} ({bounds}; {each})"


def _notes(document: Mapping[str, Any]) -> Iterator[str]:
    """Methods that began ahead of others, runs that are in no mean, and runs that are not at equal tokens."""
    for name, method in document["methods"].items():
        if method["after"] is not None:
            yield (
                f"{name} starts from the policies that {method['after']}'s runs of the same seeds left: the tokens of "
                "those come before its own."
            )
        for seed, why in method["missing"].items():
            yield f"**{name}, seed {seed}, is missing: {why}.**"
        for seed, tokens in method["short_of_tokens"].items():
            yield f"**{name}, seed {seed}, ended before its budget: {short(tokens)} tokens (run.updates?).**"


def _modes(document: Mapping[str, Any]) -> list[str]:
    """Of the final judge, in the order of the comparison's file."""
    figures = (figure for method in document["methods"].values() for figure in method["figures"])
    return list(dict.fromkeys(figure.partition(".")[0] for figure in figures if "." in figure))


def _ks(document: Mapping[str, Any], before: str, behind: str) -> list[int]:
    """The k of pass@k that some method has, in order."""
    names = {name for method in document["methods"].values() for name in method["figures"]}
    ks = [n.removeprefix(before).removesuffix(behind) for n in names if n.startswith(before) and n.endswith(behind)]
    return sorted(int(k) for k in ks if k.isdecimal())
