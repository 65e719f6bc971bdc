"""An engine that receives weights stops where the learner does: at its word, or once it is gone."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from actors import nccl_receiver
from actors.nccl_receiver import NcclReceiver, ended_by
from configs.breakable import BROKEN_OFF
from orchestration.cluster import ROOT

pytestmark = pytest.mark.timeout(60)

STOPS = r"^the learner has broken the broadcast off, or died$"


class Group:
    """A broadcast that waits for ever."""

    def __init__(self) -> None:
        self.destroyed = threading.Event()

    def destroy(self) -> None:
        self.destroyed.set()


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The learner's store, and the engine's line to it."""
    monkeypatch.setattr(nccl_receiver, "LOOK_S", 0.02)
    limit = timedelta(seconds=10)
    own = dist.TCPStore("127.0.0.1", 0, 2, True, limit, wait_for_workers=False)
    return [own, dist.TCPStore("127.0.0.1", own.port, 2, False, limit)]


def test_a_broadcast_that_comes_to_its_end_is_none_of_its_business(stores: list[Any]) -> None:
    group: Any = Group()
    with ended_by(stores[1], group):
        pass
    stores[0].set(BROKEN_OFF, "")
    assert not group.destroyed.wait(0.2)


def test_a_broadcast_ends_at_the_learners_word(stores: list[Any]) -> None:
    group: Any = Group()

    def receive() -> None:
        with ended_by(stores[1], group):
            stores[0].set(BROKEN_OFF, "")
            assert group.destroyed.wait(10)

    with pytest.raises(RuntimeError, match=STOPS):
        receive()


def test_a_broadcast_ends_with_the_learner(stores: list[Any]) -> None:
    group: Any = Group()
    store = stores.pop()

    def receive() -> None:
        with ended_by(store, group):
            stores.clear()
            assert group.destroyed.wait(10)

    with pytest.raises(RuntimeError, match=STOPS):
        receive()


def test_an_error_of_the_engine_is_told_as_it_is(stores: list[Any]) -> None:
    group: Any = Group()
    with pytest.raises(ValueError, match="no such parameter"), ended_by(stores[1], group):
        raise ValueError("no such parameter")


def test_weights_before_there_is_a_group_are_refused() -> None:
    engine = NcclReceiver.__new__(NcclReceiver)
    update: Any = None
    with pytest.raises(RuntimeError, match=r"^the engine is in no weight group$"):
        engine.receive_weights(update)


def test_a_worker_of_its_own_process_knows_the_backends() -> None:
    """vLLM imports there what is named as its extension, and finds no entry points of what is not installed."""
    program = (
        "from vllm.utils.import_utils import resolve_obj_by_qualname as find;"
        "find('actors.weight_receiver.WeightTaking');"
        "from vllm.distributed.weight_transfer import WeightTransferEngineFactory as made;"
        "print({'gloo', 'watched_nccl'} <= set(made._registry))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "True"
