"""What `make soak` calls growth, of readings that are made up."""

from __future__ import annotations

from typing import Any

from tests.soak import CHECKPOINTS, MORE_FILES, NAMES, figures_of, what_grew


def readings(**more: Any) -> list[dict[str, Any]]:
    """Two hours of them, every six minutes; `more`: name -> what an actor or the run has more in each."""
    return [
        {
            "at_s": 360.0 * n, "memory_mib": {kind: 1000.0 + (kind == "actors") * more.get("mib", 0) * n for kind in NAMES},
            "peak_mib": dict.fromkeys(NAMES, 1100.0),
            "files": {kind: 30 + (kind == "actors") * more.get("files", 0) * n for kind in NAMES},
            "checkpoints": CHECKPOINTS + more.get("checkpoints", 0) * n, "updates": n,
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
