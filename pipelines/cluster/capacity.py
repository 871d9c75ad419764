"""Whether work fits a cluster as it is, or as its autoscaler can make it: sums over resources, without Ray."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from maskrcnn_core.errors import ConfigError

# Ray asks for this much of `accelerator_type:NAME`, of which a machine has 1: enough for a thousand workers.
ACCELERATOR_SHARE = 0.001

_ACCELERATOR = "accelerator_type:"

Resources = Mapping[str, float]
"""Amounts by Ray's names: `CPU`, `GPU`, `accelerator_type:H100`."""


@dataclass(frozen=True)
class NodeType:
    """A kind of machine that an autoscaler starts.

    Attributes:
        name: in the cluster's configuration.
        resources: of one machine.
        most: machines of it, those that run included; None = any number.
    """

    name: str
    resources: Resources
    most: int | None


@dataclass(frozen=True)
class Capacity:
    """What a cluster has, and what it can get.

    Attributes:
        nodes: resources of each live node.
        node_types: what its autoscaler may start; None where no autoscaler has told its limits.
        most_nodes: machines that the autoscaler starts in all; None = any number.
        is_own: this process has started it, on this machine: no other machine will ever join.
    """

    nodes: tuple[Resources, ...]
    node_types: tuple[NodeType, ...] | None = None
    most_nodes: int | None = None
    is_own: bool = False

    @property
    def gpus(self) -> int:
        """GPUs that are there now."""
        return int(sum(node.get("GPU", 0.0) for node in self.nodes))

    @property
    def can_have_gpus(self) -> bool:
        """Whether there is a GPU, or a machine with one can come."""
        types = [kind for kind in self.node_types or () if kind.most != 0]
        return self.gpus > 0 or any(kind.resources.get("GPU", 0.0) >= 1 for kind in types)


@dataclass(frozen=True)
class Demand:
    """What some work needs at the same time.

    Attributes:
        setting: name of the setting that asks for it, for messages.
        what: the work in words, such as `8 workers`.
        bundles: resources that have to be free together, each bundle on one machine.
        mend: what the user can do where it cannot be had.
    """

    setting: str
    what: str
    bundles: tuple[Resources, ...]
    mend: str

    def total(self, resource: str) -> float:
        """Of all bundles."""
        return sum(bundle.get(resource, 0.0) for bundle in self.bundles)


def fits_now(demand: Demand, capacity: Capacity) -> bool:
    """Whether the live nodes have room for all bundles, were they idle."""
    return placed_now(demand, capacity) == len(demand.bundles)


def placed_now(demand: Demand, capacity: Capacity) -> int:
    """How many bundles the live nodes have room for, were they idle."""
    return _placed(demand.bundles, capacity.nodes, (), None)


def placed_ever(demand: Demand, capacity: Capacity) -> int:
    """How many bundles find room once the autoscaler has started all that it may."""
    types = capacity.node_types or ()
    shapes = [_shape(kind.resources) for kind in types]
    # Live machines of a type count among its own; the head and others that are of none come on top.
    others = [node for node in capacity.nodes if _shape(node) not in shapes]
    by_size = sorted(types, key=lambda kind: _shape(kind.resources)[::-1])
    # Small machines first leave the large ones to those that need them; large ones first make the most of `most_nodes`.
    return max(_placed(demand.bundles, others, order, capacity.most_nodes) for order in (by_size, by_size[::-1]))


def require_reachable(demand: Demand, capacity: Capacity) -> None:
    """Refuse what the cluster can never have; one whose limits nobody knows may yet get it.

    Raises:
        ConfigError: naming shape and number.
    """
    if fits_now(demand, capacity):
        return
    if capacity.is_own:
        raise ConfigError(f"{demand.setting}: {shortage(demand, capacity)}; {demand.mend}")
    if capacity.node_types is None or (room := placed_ever(demand, capacity)) == len(demand.bundles):
        return
    shapes = ", ".join(f"{count} of {shape}" for shape, count in _counted(demand.bundles))
    limits = "; ".join(_limit(kind) for kind in capacity.node_types if kind.most != 0) or "nothing"
    in_all = "" if capacity.most_nodes is None else f", {capacity.most_nodes} machines in all"
    raise ConfigError(
        f"{demand.setting}: {demand.what} need {shapes}, each on one machine; the Ray cluster can grow to hold {room} "
        f"of these {len(demand.bundles)} (its autoscaler starts: {limits}{in_all}); {demand.mend}"
    )


def shortage(demand: Demand, capacity: Capacity) -> str:
    """What of a demand the live nodes lack, in words."""
    for resource in ("GPU", "CPU"):
        wanted, there = demand.total(resource), sum(node.get(resource, 0.0) for node in capacity.nodes)
        if wanted > there:
            return f"{demand.what} need {wanted:g} {resource}s, the Ray cluster has {there:g}"
    shapes = ", ".join(f"{count} of {shape}" for shape, count in _counted(demand.bundles))
    machines = ", ".join(f"{count} of {shape}" for shape, count in _counted(capacity.nodes)) or "none"
    return (
        f"{demand.what} need {shapes}, each on one machine; the machines of the Ray cluster ({machines}) have room for "
        f"{placed_now(demand, capacity)} of these {len(demand.bundles)}"
    )


def waiting_line(demand: Demand, capacity: Capacity) -> str:
    """What is waited for, and how much of it is there."""
    resource = "GPU" if demand.total("GPU") else "CPU"
    wanted = demand.total(resource)
    there = min(wanted, sum(node.get(resource, 0.0) for node in capacity.nodes))
    machines = sum(any(node.get(name, 0.0) for name in ("CPU", "GPU")) for node in capacity.nodes)
    line = (
        f"waiting for {_amount(wanted, resource)}: {there:g} of {wanted:g} are there "
        f"({machines} machine{'' if machines == 1 else 's'})"
    )
    if there < wanted:
        return line
    if fits_now(demand, capacity):
        return f"{line}, but other work holds some of them"
    shapes = " or ".join(shape for shape, _ in _counted(demand.bundles))
    return f"{line}, but not as it needs them: {shapes} on one machine"


def describe(resources: Resources) -> str:
    """Resources in words: `9 CPUs and 1 GPU (H100)`."""
    parts = [_amount(resources[name], name) for name in ("CPU", "GPU") if resources.get(name)]
    special = [name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR)]
    return (" and ".join(parts) or "no CPU") + (f" ({', '.join(special)})" if special else "")


def _amount(number: float, resource: str) -> str:
    return f"{number:g} {resource}{'' if number == 1 else 's'}"


def _limit(kind: NodeType) -> str:
    number = "any number of" if kind.most is None else f"up to {kind.most}"
    return f"{number} {kind.name} with {describe(kind.resources)}"


def _shape(resources: Resources) -> tuple[float, float]:
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0)


def _counted(resources: Sequence[Resources]) -> Iterator[tuple[str, int]]:
    """Descriptions and how often each stands there, in the order of their first."""
    yield from Counter(describe(one) for one in resources).items()


def _placed(
    bundles: Sequence[Resources], nodes: Sequence[Resources], types: Sequence[NodeType], most_nodes: int | None
) -> int:
    """Bundles that find room: the largest first, each on the first machine that has it, then on one of the first type
    that may be started.

    First fit is not always the best packing; what it misses is a machine here and there of very uneven ones.
    """
    free = [dict(node) for node in nodes]
    left = {kind.name: math.inf if kind.most is None else kind.most for kind in types}
    startable = math.inf if most_nodes is None else most_nodes
    placed = 0
    for bundle, wanted in _by_size(bundles):
        rest = wanted
        for node in free:
            rest -= _take(node, bundle, rest)
        for kind in types:
            while rest and left[kind.name] > 0 and startable > 0 and _room(kind.resources, bundle):
                node = dict(kind.resources)
                rest -= _take(node, bundle, rest)
                free.append(node)
                left[kind.name] -= 1
                startable -= 1
        placed += wanted - rest
    return placed


def _by_size(bundles: Sequence[Resources]) -> list[tuple[dict[str, float], int]]:
    """Different bundles and how often each is wanted, those of many GPUs and CPUs first."""
    counts = Counter(tuple(sorted(bundle.items())) for bundle in bundles)
    kinds = [(dict(items), count) for items, count in counts.items()]
    return sorted(kinds, key=lambda kind: _shape(kind[0])[::-1], reverse=True)


def _room(node: Resources, bundle: Resources) -> int:
    """How many bundles of a kind a machine holds."""
    needed = {name: amount for name, amount in bundle.items() if amount > 0}
    # A billionth more than there is: thousandths do not add up exactly.
    return min((int(node.get(name, 0.0) / amount + 1e-9) for name, amount in needed.items()), default=1 << 30)


def _take(node: dict[str, float], bundle: Resources, most: int) -> int:
    """Puts up to `most` bundles on a machine; returns how many."""
    number = min(most, _room(node, bundle))
    for name, amount in bundle.items() if number else ():
        node[name] = node.get(name, 0.0) - number * amount
    return number
