"""Whether a job that can do without Ray uses it."""

import os
import sys

from pipelines.cluster.config import ClusterConfig


def uses_ray(cluster: ClusterConfig) -> bool:
    """As `cluster.ray` says; with auto where a cluster is named or described, or this process is connected to one."""
    if cluster.ray != "auto":
        return cluster.ray
    if cluster.address or os.environ.get("RAY_ADDRESS") or cluster.num_cpus:
        return True
    ray = sys.modules.get("ray")  # not imported for this: it takes a while
    return ray is not None and bool(ray.is_initialized())
