"""The schedulers that launchers are tried on: real ones, on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import worlds
from ray_cluster import two_nodes
from slurm_cluster import Slurm, cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A Slurm cluster of two nodes."""
    yield from cluster()


@pytest.fixture
def ray_nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes, for one test: another process's test waits for its turn."""
    yield from two_nodes()


@pytest.fixture(params=["local", "slurm", "ray"])
def world(request: pytest.FixtureRequest) -> worlds.World:
    """A launcher and what is around it."""
    if request.param == "slurm":
        return worlds.slurm(request.getfixturevalue("slurm"))
    if request.param == "ray":
        return worlds.ray(request.getfixturevalue("ray_nodes").address)
    return worlds.local()
