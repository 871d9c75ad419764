"""The typed configuration of the Ray cluster that a job uses."""

from dataclasses import dataclass
from typing import Literal

from maskrcnn_core.config.checks import require_between, require_typed

_MAX_CPUS = 100_000


@dataclass(frozen=True)
class ClusterConfig:
    """The Ray cluster that a job uses."""

    address: str | None = None
    """Address of a running cluster; null = RAY_ADDRESS, or one started on this machine for the job."""
    num_cpus: int = 0
    """Logical CPUs of a cluster started here; 0 = the machine's cores, at least 4."""
    ray: bool | Literal["auto"] = "auto"
    """Whether labelling goes through Ray; auto = where an address is given, or logical CPUs, or Ray is in use already.
    Without it processes of this machine label, which start sooner. Training always goes through Ray."""

    def __post_init__(self) -> None:
        require_typed("cluster", self)
        require_between("cluster.num_cpus", self.num_cpus, 0, _MAX_CPUS)
