"""Where a process runs, so that the right one can be ended."""

from __future__ import annotations

import os
import pickle
import time
from types import SimpleNamespace

import pytest

from actors import place
from actors.place import Place


def test_a_place_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = SimpleNamespace(
        util=SimpleNamespace(get_node_ip_address=lambda: "10.0.0.7"),
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "0a1b"),
    )
    monkeypatch.setattr(place, "ray", ray)
    here = Place.here()
    assert (here.address, here.node, here.pid) == ("10.0.0.7", "0a1b", os.getpid())
    assert 0 < here.began <= time.time()
    assert here == Place.here() == pickle.loads(pickle.dumps(here))


def test_a_process_that_has_the_same_number_is_another_place() -> None:
    assert Place("10.0.0.7", "0a1b", 17, 1000.0) != Place("10.0.0.7", "0a1b", 17, 1000.5)
