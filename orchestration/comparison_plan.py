"""What a comparison runs, worked out before anything starts: a run a method and seed, and the judging of its policy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.comparison import START, ComparisonConfig
from configs.load import ConfigError, load_config, to_yaml
from configs.schema import RunConfig

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_ROOT = Path("runs/compare")
# Said before the file's own overrides, which may say otherwise. The budget ends a run, not the number of its updates;
# several runs at once would fight over the dashboard's port, and their output goes to files.
_NO_END = 1_000_000
_DEFAULTS = (f"run.updates={_NO_END}", "observe.console=false", "cluster.dashboard=false")


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of orchestration/run.py. folder: absolute; place: the same as commands write it.

    after: name of the run it starts from. arguments: behind `python`, in ROOT.
    """

    name: str
    method: str
    seed: int
    folder: Path
    place: Path
    after: str | None
    overrides: tuple[str, ...]  # all but those that say where the run lies
    arguments: tuple[str, ...]
    config: RunConfig

    @property
    def resume_arguments(self) -> tuple[str, ...]:
        return ("orchestration/run.py", "--resume", str(self.place))

    @property
    def digest(self) -> str:
        """Equal for runs of equal settings; where they lie does not count."""
        settings = self.config.model_copy(update={"run": self.config.run.model_copy(update={"root": "."})})
        return f"sha256:{hashlib.sha256(to_yaml(settings).encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """One policy judged in one way. after: name of the run that leaves the policy, None for the one of `base`.

    config: the judge's settings, without that policy.
    """

    name: str
    mode: str
    after: str | None
    output: Path
    arguments: tuple[str, ...]
    config: RunConfig


@dataclass(frozen=True, slots=True)
class Plan:
    """folder: absolute. runs: in the order they start, all methods of a seed before the next seed."""

    name: str
    folder: Path
    runs: tuple[PlannedRun, ...]
    judgements: tuple[Judgement, ...]


def make_plan(comparison: ComparisonConfig, path: Path, root: Path, written: Path) -> Plan:
    """The plan with its runs' folders under `root`, which commands write as `written`.

    Raises ConfigError with the problems of all configurations.
    """
    folder, place = root.absolute() / path.stem, written / path.stem
    problems: list[str] = []
    runs: list[PlannedRun] = []
    for seed in comparison.seeds:
        for name in comparison.in_order():
            try:
                runs.append(_planned(comparison, path, folder, place, name, seed))
            except ConfigError as error:
                problems += [f"methods.{name}: {problem}" for problem in error.problems]
    judgements: tuple[Judgement, ...] = ()
    try:
        judgements = tuple(_judgements(comparison, path, folder, place, runs))
    except ConfigError as error:
        problems += [f"evaluate: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))  # the same for every seed
    return Plan(path.stem, folder, tuple(runs), judgements)


def from_root(path: Path) -> Path:
    """The path as seen from the project's folder if it lies in it, else an absolute one."""
    whole = Path(os.path.abspath(path))
    return whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole


def run_name(method: str, seed: int) -> str:
    return f"{method}-seed-{seed}"


def _planned(comparison: ComparisonConfig, path: Path, folder: Path, place: Path, name: str, seed: int) -> PlannedRun:
    """Raises ConfigError."""
    method = comparison.methods[name]
    config_path = path.parent / (method.config or comparison.base)
    fixed = [f"run.seed={seed}", f"run.max_tokens={comparison.tokens}"]
    if method.after is not None:
        fixed.append(f"model.path={place / run_name(method.after, seed) / 'policy'}")
    where = [f"run.root={place}", f"run.name={run_name(name, seed)}"]
    overrides = (*_DEFAULTS, *comparison.overrides, *method.overrides, *fixed)
    config = load_config(Path(os.path.normpath(config_path)), (*overrides, *where))
    if config.run.updates == _NO_END and config.optim.schedule != "constant":
        raise ConfigError(
            [f"optim.schedule ({config.optim.schedule}) ends at run.updates: say in `overrides` how many there will be"]
        )
    return PlannedRun(
        name=run_name(name, seed),
        method=name,
        seed=seed,
        folder=folder / run_name(name, seed),
        place=place / run_name(name, seed),
        after=None if method.after is None else run_name(method.after, seed),
        overrides=overrides,
        arguments=("orchestration/run.py", "--config", str(from_root(config_path)), *overrides, *where),
        config=config,
    )


def _judgements(
    comparison: ComparisonConfig, path: Path, folder: Path, place: Path, runs: list[PlannedRun]
) -> Iterator[Judgement]:
    """Of the policy of `base`, and of the one that each run leaves. Raises ConfigError."""
    settings = comparison.evaluate
    if settings is None:
        return
    for run in [None, *runs]:
        seed = comparison.seeds[0] if run is None else run.seed
        policy = () if run is None else ("--policy", str(run.place / "policy"))
        overrides = (
            *_DEFAULTS, *comparison.overrides, *settings.overrides, f"run.seed={seed}",
            f"eval.episodes={settings.episodes}",
        )  # fmt: skip
        judge = load_config(Path(os.path.normpath(path.parent / comparison.base)), overrides)
        for mode in settings.modes:
            name = f"{START if run is None else run.name}.{mode}-{settings.samples}x{settings.episodes}"
            flags = ("--mode", mode, "--samples", str(settings.samples), "--output", str(place / f"{name}.json"))
            config = ("--config", str(from_root(path.parent / comparison.base)))
            arguments = ("-m", "orchestration.evaluate", *config, *policy, *flags, *overrides)
            after = None if run is None else run.name
            yield Judgement(name, mode, after, folder / f"{name}.json", arguments, judge)
