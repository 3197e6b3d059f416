"""A Ray cluster of two nodes on this machine; one at a time, whatever other test processes want."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NODE = {"node_ip_address": "127.0.0.1", "num_cpus": 1, "object_store_memory": 100 << 20}
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Of all that talk to the cluster: Ray would take 127.0.0.1 for the machine's outward address, where nobody is."""


def two_nodes() -> Iterator[Any]:
    """A ``ray.cluster_utils.Cluster``, ended at the end; the body of a fixture.

    Ray keeps what it knows of this machine in the folder of the session that started last, so that a second cluster
    would hide the first.
    """
    os.environ |= ENVIRONMENT
    from ray.cluster_utils import Cluster

    with (Path(tempfile.gettempdir()) / "lora-lab-test-ray.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        head = NODE | {"include_dashboard": False, "_system_config": HEALTH}
        running = Cluster(initialize_head=True, head_node_args=head)
        try:
            running.add_node(**NODE)
            yield running
        finally:
            running.shutdown()
