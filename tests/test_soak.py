"""What `make soak` calls growth, of readings that are made up."""

from __future__ import annotations

from typing import Any

from tests.soak import CHECKPOINTS, MORE_FILES, NAMES, figures_of, what_grew


def readings(**more: Any) -> list[dict[str, Any]]:
    """Two hours of them, every six minutes; `more`: name -> what an actor or the run has more in each."""

    def with_actors(others: float, name: str, n: int) -> dict[str, float]:
        return {kind: others + more.get(name, 0) * n * (kind == "actors") for kind in NAMES}

    return [
        {
            "at_s": 360.0 * n, "memory_mib": with_actors(1000.0, "mib", n), "peak_mib": dict.fromkeys(NAMES, 1100.0),
            "files": with_actors(30, "files", n), "checkpoints": CHECKPOINTS + more.get("checkpoints", 0) * n,
            "updates": n,
        }
        for n in range(21)
    ]  # fmt: skip


def test_what_stays_as_it_is_has_not_grown() -> None:
    figures = figures_of(readings())
    assert what_grew(figures) == []
    assert (figures["hours"], figures["updates"]) == (2.0, 20)


def test_what_grows_is_named() -> None:
    assert what_grew(figures_of(readings(mib=1.0))) == []  # 10 MiB an hour of 1,000
    assert what_grew(figures_of(readings(mib=3.0))) == ["memory of actors"]
    assert what_grew(figures_of(readings(files=MORE_FILES / 10))) == ["files of actors"]
    assert what_grew(figures_of(readings(checkpoints=1))) == ["checkpoints"]
