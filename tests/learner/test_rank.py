"""Where the ranks of a learner meet."""

from __future__ import annotations

import errno
import socket
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from configs.schema import RunConfig
from learner.rank import LearnerRank


def test_the_port_ranks_meet_at_is_nobody_elses_before_they_come() -> None:
    rank: Any = LearnerRank(RunConfig.model_validate({"deepspeed": {"timeout_s": 9}}), "policy", 0)
    address, port = rank.meet()
    with socket.socket() as other, pytest.raises(OSError) as refused:  # noqa: PT011 - its number is looked at below
        other.bind(("", port))
    assert refused.value.errno == errno.EADDRINUSE

    # As torch's rendezvous does it: the server's own process asks for a server there and gets that one.
    limit = timedelta(seconds=9)
    of_rank_0 = dist.TCPStore(address, port, 2, True, limit, wait_for_workers=False, multi_tenant=True)
    of_rank_1 = dist.TCPStore(address, port, 2, False, limit)
    of_rank_1.set("rank 1", "is there")
    assert of_rank_0.get("rank 1") == b"is there"
    of_rank_0.set("rank 0", "is there too")
    assert rank._meeting.get("rank 0") == b"is there too"


def test_ranks_that_start_anew_meet_elsewhere() -> None:
    rank: Any = LearnerRank(RunConfig.model_validate({"deepspeed": {"timeout_s": 9}}), "policy", 0)
    (_, first), (_, second) = rank.meet(), rank.meet()
    with socket.socket() as other:
        other.bind(("", first))  # the one before is let go
    assert second != first
