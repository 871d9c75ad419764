"""The table of sizes in docs/cluster.md, and cluster.yaml and the RayJob for labelling, which are its first column."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
RAYJOB: dict[str, Any] = yaml.safe_load((REPOSITORY / "deploy/rayjob-label.yaml").read_text())


def read_sizes(column: int) -> dict[str, str]:
    """First column of the table -> one of the others."""
    page = (REPOSITORY / "docs/cluster.md").read_text()
    table = page.split("## Sizes\n")[1].split("## ")[0]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    return {row[0].split("`")[0]: row[column] for row in rows if set(row[0]) != {"-"}}


SIZES = read_sizes(1)


def machine(name: str) -> str:
    """As the table has it: how many of a type, and which."""
    kind = CLUSTER["available_node_types"][name]
    return f"{kind['max_workers']}, {kind['node_config']['InstanceType']}"


def test_cluster_yaml_is_the_first_column() -> None:
    head = CLUSTER["available_node_types"]["head"]["node_config"]
    assert str(CLUSTER["max_workers"]) == SIZES["max_workers"]
    assert machine("gpu") == SIZES["gpu"]
    assert machine("cpu") == SIZES["cpu"]
    assert f"{head['InstanceType']}, {head['BlockDeviceMappings'][0]['Ebs']['VolumeSize']} GB" == SIZES["head"]


def test_its_first_lines_label_with_all_gpus() -> None:
    found = re.search(r"--label.max_workers (\d+)", (REPOSITORY / "cluster.yaml").read_text())
    assert found[1] == SIZES["--label.max_workers"]


def test_the_rayjob_is_the_first_column() -> None:
    cluster = RAYJOB["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert f"{head['cpu']} CPUs, {head['memory'].removesuffix('Gi')} GiB" == SIZES["the head's pod on Kubernetes"]
    for group in cluster["workerGroupSpecs"]:
        assert SIZES[group["groupName"]].startswith(f"{group['maxReplicas']}, ")
    assert RAYJOB["spec"]["entrypoint"].endswith(f"--label.max_workers {SIZES['--label.max_workers']}")


@pytest.mark.parametrize("column", [1, 2])
def test_a_columns_machines_add_up(column: int) -> None:
    sizes = read_sizes(column)
    machines = [int(sizes[name].split(",")[0]) for name in ("gpu", "cpu")]
    assert sum(machines) == int(sizes["max_workers"])
    assert machines[0] == int(sizes["--label.max_workers"])  # one GPU each
