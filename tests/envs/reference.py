"""Independent implementations that rewards are compared with; in the tests' environment only."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any


def reasoning_gym(name: str) -> Any:
    """A module of reasoning-gym, such as `games.countdown`, without the package's own start-up.

    Importing the package imports all of its tasks, some of which need a compiler to install.
    """
    root = Path(str(distribution("reasoning-gym").locate_file("reasoning_gym")))
    for package in ("reasoning_gym", "reasoning_gym." + name.rpartition(".")[0]):
        if package not in sys.modules:
            hollow = ModuleType(package)
            hollow.__path__ = [str(root.joinpath(*package.split(".")[1:]))]
            sys.modules[package] = hollow
    return import_module(f"reasoning_gym.{name}")
