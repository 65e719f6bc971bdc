"""A run's figures for TensorBoard, under `tensorboard/` in its folder; `tensorboard --logdir runs` shows all runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from orchestration.metrics_table import HeldOutMetrics, UpdateMetrics, scalars


class TensorBoardLog:
    """Steps are updates. done: updates done so far: what an earlier process wrote of later ones is not shown."""

    name = "TensorBoard"

    def __init__(self, folder: Path, done: int) -> None:
        self._writer = EventFileWriter(str(folder))
        self._add(done + 1, session_log=SessionLog(status=SessionLog.START))

    def update(self, line: UpdateMetrics) -> None:
        self._scalars("training", line.update, scalars(line))

    def held_out(self, line: HeldOutMetrics) -> None:
        self._scalars("held_out", line.update, scalars(line))

    def close(self) -> None:
        self._writer.close()

    def _scalars(self, group: str, update: int, values: Mapping[str, float]) -> None:
        rows = [Summary.Value(tag=f"{group}/{name}", simple_value=value) for name, value in values.items()]
        self._add(update, summary=Summary(value=rows))
        self._writer.flush()

    def _add(self, step: int, **what: object) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, **what))
