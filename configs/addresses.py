"""Where the Ray cluster is that a run joins."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def check_address(address: str) -> str:
    """The address as it is. Raises ValueError for one of Ray Client, which cannot take a run's JobConfig along."""
    if address.startswith("ray://"):
        raise ValueError(
            f"{address} is an address of Ray Client, through which no run goes: submit the run as a job (`ray job "
            "submit --address http://HEAD:8265`), or start it on a node of the cluster with the head's HOST:PORT"
        )
    return address


RayAddress = Annotated[str, AfterValidator(check_address)]
