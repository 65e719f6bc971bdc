"""Where an actor's process runs, so that it can be told from the one before, and ended."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil
import ray


@dataclass(frozen=True, slots=True)
class Place:
    """address: of the node, node: Ray's id of it. began: of the process, seconds since 1970: numbers come again."""

    address: str
    node: str
    pid: int
    began: float

    @classmethod
    def here(cls) -> Place:
        """This process."""
        address, node = ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id()
        return cls(str(address), str(node), os.getpid(), psutil.Process().create_time())


def place_of(_: object) -> Place:
    """To be run by `__ray_call__` in the process of an actor that has no method for it."""
    return Place.here()
