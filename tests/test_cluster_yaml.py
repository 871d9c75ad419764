"""cluster.yaml against Ray's own schema, and for what it promises."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).resolve().parents[1] / "cluster.yaml"

# Ray's own loader uses what it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def validate(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    validate(config)


def test_ray_finds_a_slip_in_it(config: dict[str, Any]) -> None:
    config["max_worker"] = config.pop("max_workers")
    with pytest.raises(Exception, match="max_worker"):
        validate(config)


def test_the_head_does_no_work_and_gpus_are_spot_and_shrink_to_none(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["gpu"]["min_workers"] == types["cpu"]["min_workers"] == 0


def test_every_process_wants_a_token_and_the_dashboard_is_not_public(config: dict[str, Any]) -> None:
    starts = [*config["head_start_ray_commands"][1:], *config["worker_start_ray_commands"][1:]]
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
    assert any(place.endswith("auth_token") for place in config["file_mounts"])
    open_ports = {rule["FromPort"] for rule in config["provider"]["security_group"]["IpPermissions"]}
    assert open_ports == {22}


def test_shared_memory_is_large_enough_for_the_object_store(config: dict[str, Any]) -> None:
    assert "--shm-size=16g" in config["docker"]["run_options"]
