"""Where a run's figures go beside its own files: Ray's metrics (Prometheus), TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec

from configs.schema import RunConfig
from configs.shown import safe
from orchestration.metrics_table import HeldOutMetrics, UpdateMetrics
from orchestration.run_folder import RunFolder
from orchestration.tracker_thread import Tracker, TrackerThread


class Trackers:
    """All trackers of a run. Watching never ends a run: one that fails is said once, by name, and left out."""

    def __init__(self, trackers: Iterable[Tracker], say: Callable[[str], None]) -> None:
        self._say = say
        self._trackers = list(trackers)

    def update(self, line: UpdateMetrics) -> None:
        self._each(lambda tracker: tracker.update(line))

    def held_out(self, line: HeldOutMetrics) -> None:
        self._each(lambda tracker: tracker.held_out(line))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())
        self._trackers = []

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                self._say(f"warning: {tracker.name} is left out from here on: {safe(error)}")


def open_trackers(config: RunConfig, folder: RunFolder, say: Callable[[str], None], done: int) -> Trackers:
    """Those the config asks for; done: updates done so far. One that cannot be opened is said and left out."""
    makers: tuple[tuple[str, bool, Callable[[], Tracker]], ...] = (
        ("Ray's metrics", config.observe.ray_metrics, lambda: _ray_gauges(config, folder)),
        ("TensorBoard", config.observe.tensorboard, lambda: _tensorboard(folder, done)),
        ("Weights & Biases", config.observe.wandb is not None, lambda: _wandb(config, folder)),
    )
    trackers = []
    for name, wanted, make in makers:
        try:
            if wanted:
                trackers.append(make())
        except Exception as error:
            say(f"warning: {name} cannot be opened and is left out: {safe(error)}")
    return Trackers(trackers, say)


def tracker_problems(config: RunConfig) -> list[str]:
    """What keeps the config's trackers from working here, known before anything starts."""
    if config.observe.wandb is not None and find_spec("wandb") is None:
        return ["observe.wandb: the package wandb is not installed: pip install wandb, or leave the key empty"]
    return []


# Each library is loaded only where it is asked for.


def _ray_gauges(config: RunConfig, folder: RunFolder) -> Tracker:
    from orchestration.ray_gauges import RayGauges

    return RayGauges({"run": folder.path.name, "env": config.env.name, "sampler": config.sampler.name})


def _tensorboard(folder: RunFolder, done: int) -> Tracker:
    from orchestration.tensorboard_log import TensorBoardLog

    return TensorBoardLog(folder.tensorboard, done)


def _wandb(config: RunConfig, folder: RunFolder) -> Tracker:
    from orchestration.wandb_log import WandbLog

    return TrackerThread(WandbLog.name, lambda: WandbLog(config, folder))
