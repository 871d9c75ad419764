"""deploy/rayservice.yaml: what KubeRay takes, the service that jobs.serve would write, pods that fit it."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from jobs import cli
from pipelines.serving.config import ServeRun
from pipelines.serving.deploy_file import deploy_document
from tests.deploy.kuberay import Manifest, read_schema, refusals_of_service, schema_errors

REPOSITORY = Path(__file__).resolve().parents[2]
FILE = REPOSITORY / "deploy/rayservice.yaml"
CRDS = os.environ.get("KUBERAY_CRDS")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def read_service() -> Manifest:
    manifest: Manifest = yaml.safe_load(FILE.read_text())
    return manifest


def config() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(read_service()["spec"]["serveConfigV2"])
    return document


def test_the_operator_takes_it() -> None:
    assert refusals_of_service(read_service()) == []


def test_a_slip_is_refused() -> None:
    manifest = read_service()
    manifest["metadata"]["name"] = "Serve_1"
    manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplicas"] = 9
    assert len(refusals_of_service(manifest)) == 2


@pytest.mark.skipif(CRDS is None, reason="KUBERAY_CRDS names no folder with KubeRay's CRDs (ray.io_rayservices.yaml)")
def test_it_has_the_fields_of_kuberays_schema() -> None:
    schema = read_schema(Path(str(CRDS)), "rayservices")
    assert schema_errors(read_service(), schema) == []
    misspelt = read_service()
    misspelt["spec"]["serveConfig"] = misspelt["spec"].pop("serveConfigV2")
    assert any("serveConfig" in error for error in schema_errors(misspelt, schema))


def test_it_is_what_the_job_would_write() -> None:
    settings = (
        "--checkpoint s3://BUCKET/checkpoint --host 0.0.0.0 --serve.use_gpu true --serve.max_replicas 4 "
        "--serve.ingress_replicas 2 --serve.keys /etc/maskrcnn/keys --serve.requests_per_minute 600"
    )
    run = cli.parse_run(ServeRun, prog="serve", argv=settings.split())
    assert config() == deploy_document(run)


def test_ray_serve_takes_it() -> None:
    ServeDeploySchema.model_validate(config())


def test_there_are_machines_for_all_replicas_and_their_keys() -> None:
    cluster = read_service()["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    (application,) = config()["applications"]
    settings = application["args"]["serve"]
    assert group["maxReplicas"] == application["deployments"][0]["autoscaling_config"]["max_replicas"]
    for pod in (group["template"]["spec"], cluster["headGroupSpec"]["template"]["spec"]):
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert settings["keys"].startswith(f"{mounts['keys']}/")
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
        assert pod["securityContext"] == {"runAsNonRoot": True}


def test_the_command_for_users_leaves_nothing_to_put_in() -> None:
    (edits,) = re.findall(r"sed '([^']*)' deploy/rayservice", FILE.read_text())
    edited = subprocess.run(["sed", edits, FILE], capture_output=True, text=True, check=True).stdout
    assert not re.search("BUCKET|YOUR_", yaml.safe_dump(yaml.safe_load(edited)))
