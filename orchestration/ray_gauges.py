"""A run's figures as gauges of Ray's metrics: Ray's own exporter gives them to Prometheus, as `ray_sesa_NAME`."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

from orchestration.metrics_table import HELD_OUT, PREFIX, HeldOutMetrics, UpdateMetrics, gauges, scalars


class RayGauges:
    """Needs a Ray that is connected. tags: on every gauge; they tell the runs on one cluster apart."""

    name = "Ray's metrics"

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = dict(tags)
        self._gauges: dict[str, Gauge] = {}
        self._words = {name: f"{metric.meaning} [{metric.unit}]" for name, metric in gauges().items()}

    def update(self, line: UpdateMetrics) -> None:
        self._set("", scalars(line))

    def held_out(self, line: HeldOutMetrics) -> None:
        self._set(HELD_OUT, scalars(line))

    def close(self) -> None:
        """Nothing to do: Ray drops the gauges of a process that has ended."""

    def _set(self, prefix: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if prefix + name not in self._gauges:
                self._gauges[prefix + name] = self._made(prefix, name)
            self._gauges[prefix + name].set(value)

    def _made(self, prefix: str, name: str) -> Gauge:
        words = self._words.get(prefix + name) or self._words[f"{prefix}pass_at_k"]
        gauge = Gauge(PREFIX + prefix + name, description=words, tag_keys=tuple(self._tags))
        gauge.set_default_tags(self._tags)
        return gauge
