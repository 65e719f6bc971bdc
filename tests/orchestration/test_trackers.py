"""Where figures go beside the run's own files; a tracker that fails costs its figures and nothing else."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.load import ConfigError
from configs.schema import RunConfig, RunSettings
from orchestration import ray_gauges, run, tracker_thread
from orchestration.metrics_table import HeldOutMetrics, UpdateMetrics, scalars
from orchestration.ray_gauges import RayGauges
from orchestration.run_folder import RunFolder
from orchestration.tensorboard_log import TensorBoardLog
from orchestration.tracker_thread import TrackerThread
from orchestration.trackers import Trackers, open_trackers, tracker_problems
from orchestration.wandb_log import WandbLog
from tests.orchestration.test_metrics import metrics
from tests.orchestration.test_metrics_table import HELD_OUT


class Keeper:
    """Keeps what it is told; fails at one call."""

    name = "Keeper"

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at = fails_at
        self.told: list[str] = []

    def update(self, line: UpdateMetrics) -> None:
        self._tell(f"update {line.update}")

    def held_out(self, line: HeldOutMetrics) -> None:
        self._tell(f"held out {line.update}")

    def close(self) -> None:
        self._tell("close")

    def _tell(self, what: str) -> None:
        if what == self.fails_at:
            raise OSError("No space left\non device")
        self.told.append(what)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.reserve(RunSettings(root=str(tmp_path), name="mine"), "x")


def told(trackers: Trackers) -> None:
    trackers.held_out(HELD_OUT)
    trackers.update(metrics(1))
    trackers.update(metrics(2))
    trackers.close()


def test_all_are_told_in_order() -> None:
    first, second, said = Keeper(), Keeper(), list[str]()
    told(Trackers([first, second], said.append))
    assert first.told == second.told == ["held out 3", "update 1", "update 2", "close"]
    assert said == []


def test_one_that_fails_is_said_once_and_left_out() -> None:
    bad, good, said = Keeper("update 1"), Keeper(), list[str]()
    told(Trackers([bad, good], said.append))
    assert bad.told == ["held out 3"]
    assert good.told == ["held out 3", "update 1", "update 2", "close"]
    assert said == [r"warning: Keeper is left out from here on: No space left\non device"]


def test_one_that_cannot_be_opened_is_said_and_left_out(folder: RunFolder) -> None:
    folder.tensorboard.write_text("in the way")
    said: list[str] = []
    told(open_trackers(_config(ray_metrics=False), folder, said.append, 0))
    (line,) = said
    assert line.startswith("warning: TensorBoard cannot be opened and is left out: ")


def test_none_is_opened_unasked(folder: RunFolder) -> None:
    told(open_trackers(_config(ray_metrics=False, tensorboard=False), folder, print, 0))
    assert not folder.tensorboard.exists()


# --- a thread of its own ---------------------------------------------------------------------------------------------


def test_in_a_thread_all_is_told_in_order_before_it_is_closed() -> None:
    keeper, said = Keeper(), list[str]()
    told(Trackers([TrackerThread("W", lambda: keeper)], said.append))
    assert keeper.told == ["held out 3", "update 1", "update 2", "close"]
    assert said == []


def test_one_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_thread, "CLOSE_S", 0.2)
    released, said, began = threading.Event(), list[str](), time.monotonic()
    told(Trackers([TrackerThread("W", lambda: released.wait(20) and Keeper())], said.append))  # type: ignore[arg-type, return-value]
    assert time.monotonic() - began < 10
    assert said == ["warning: W is left out from here on: it was not done within 0.2 s"]
    released.set()


@pytest.mark.parametrize("fails_at", ["update 1", "close"])
def test_what_goes_wrong_in_the_thread_is_said_by_name(fails_at: str) -> None:
    said: list[str] = []
    trackers = Trackers([TrackerThread("W", lambda: Keeper(fails_at))], said.append)
    told(trackers)
    assert said == [r"warning: W is left out from here on: No space left\non device"]


def test_too_many_lines_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_thread, "MOST_WAITING", 3)
    released, said = threading.Event(), list[str]()

    def make() -> Keeper:
        released.wait(20)
        return Keeper()

    trackers = Trackers([TrackerThread("W", make)], said.append)
    for update in range(1, 6):
        trackers.update(metrics(update))
    assert said == ["warning: W is left out from here on: 3 lines wait to be taken"]
    released.set()


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def _read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_tensorboard_reads_every_figure_against_updates(folder: RunFolder) -> None:
    told(Trackers([TensorBoardLog(folder.tensorboard, 0)], print))
    events = _read(folder.tensorboard)
    training = {f"training/{name}" for name in scalars(metrics(1))}
    assert set(events.Tags()["scalars"]) == training | {f"held_out/{name}" for name in scalars(HELD_OUT)}
    rewards = [(event.step, event.value) for event in events.Scalars("training/reward_mean")]
    assert rewards == [(1, pytest.approx(0.01)), (2, pytest.approx(0.02))]
    assert [(event.step, event.value) for event in events.Scalars("held_out/pass_at_16")] == [(3, 0.75)]


def test_lines_are_there_before_the_run_is_over(folder: RunFolder) -> None:
    log = TensorBoardLog(folder.tensorboard, 0)
    log.update(metrics(1))
    assert len(_read(folder.tensorboard).Scalars("training/success")) == 1
    log.close()


def test_updates_that_are_done_again_are_shown_once(folder: RunFolder) -> None:
    for done, lines in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        log = TensorBoardLog(folder.tensorboard, done)
        for update in lines:
            log.update(metrics(update, loss=float(done)))
        log.close()
    losses = [(event.step, event.value) for event in _read(folder.tensorboard).Scalars("training/loss")]
    assert losses == [(1, 0.0), (2, 0.0), (3, 2.0), (4, 2.0), (5, 2.0)]


# --- Ray's metrics ---------------------------------------------------------------------------------------------------


class Gauge:
    """Ray's, which needs a cluster."""

    all: dict[str, Gauge]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert name not in self.all, "made twice"
        self.description, self.tag_keys, self.values = description, tag_keys, list[float]()
        self.all[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> Gauge:
        assert tuple(tags) == self.tag_keys
        return self

    def set(self, value: float) -> None:
        self.values.append(value)


def test_gauges_have_the_tables_names_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    Gauge.all = {}
    monkeypatch.setattr(ray_gauges, "Gauge", Gauge)
    told(Trackers([RayGauges({"run": "mine", "env": "frozen_lake", "sampler": "sesa"})], print))
    names = {f"sesa_{name}" for name in scalars(metrics(1))} | {f"sesa_held_out_{name}" for name in scalars(HELD_OUT)}
    assert set(Gauge.all) == names
    assert Gauge.all["sesa_reward_mean"].values == [0.01, 0.02]
    assert Gauge.all["sesa_entropy"].description == "Mean entropy of the policy at the trained tokens. [nats]"
    assert Gauge.all["sesa_held_out_pass_at_16"].description.startswith('{"1": x, "2": y, ...}: chance that')


# --- Weights & Biases ------------------------------------------------------------------------------------------------


class Wandb:
    """As much of the package as is used."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.lines: list[dict[str, float]] = []
        self.axes: list[tuple[str, str]] = []
        self.finished = 0

    def init(self, **arguments: Any) -> Wandb:
        self.inits.append(arguments)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def log(self, line: dict[str, float]) -> None:
        self.lines.append(line)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=fake.init))
    return fake


def _config(**observe: Any) -> RunConfig:
    return RunConfig.model_validate({"observe": observe})


def test_a_resumed_run_is_the_same_one_there(wandb: Wandb, folder: RunFolder) -> None:
    for _ in range(2):
        told(Trackers([WandbLog(_config(wandb="lakes"), folder)], print))
    first, second = wandb.inits
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("lakes", "mine", "allow")
    assert first["config"]["observe"]["wandb"] == "lakes"
    assert len(first["id"]) == 16
    assert wandb.axes[:2] == [("training/*", "update"), ("held_out/*", "update")]
    assert wandb.finished == 2


def test_lines_go_there_with_their_update(wandb: Wandb, folder: RunFolder) -> None:
    told(Trackers([WandbLog(_config(wandb="lakes"), folder)], print))
    held_out, first, _ = wandb.lines
    assert (held_out["update"], held_out["held_out/pass_at_16"]) == (3, 0.75)
    assert (first["update"], first["training/reward_mean"]) == (1, 0.01)


def test_a_project_needs_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.trackers.find_spec", lambda name: None)
    says = "observe.wandb: the package wandb is not installed: pip install wandb, or leave the key empty"
    assert tracker_problems(_config(wandb="lakes")) == [says]
    assert tracker_problems(_config()) == []
    with pytest.raises(ConfigError, match=r"observe\.wandb: the package wandb is not installed"):
        run._check_observers(_config(wandb="lakes"))
