"""The RayJobs of deploy/: what KubeRay takes, commands that their jobs take, pods that fit them."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay import autoscaling_config

from jobs import cli
from pipelines.cluster.autoscaler import node_types
from pipelines.cluster.capacity import Capacity, Demand, NodeType, placed_ever
from pipelines.labelling.config import LabelRun
from pipelines.training.config import TrainRun
from pipelines.training.machines import training_demand
from tests.deploy.kuberay import Manifest, read_schema, refusals, schema_errors

REPOSITORY = Path(__file__).resolve().parents[2]
JOBS = ("label", "train")
CRDS = os.environ.get("KUBERAY_CRDS")

each_job = pytest.mark.parametrize("job", JOBS)


def read_text(job: str) -> str:
    return (REPOSITORY / f"deploy/rayjob-{job}.yaml").read_text()


def with_redis(text: str) -> str:
    """With the optional lines for a head that is lost."""
    return re.sub(r"^( *)# ((?:entrypointNumCpus|gcsFaultToleranceOptions|  redis\w+):)", r"\1\2", text, flags=re.M)


def read_job(job: str) -> Manifest:
    manifest: Manifest = yaml.safe_load(read_text(job))
    return manifest


def pods(manifest: Manifest) -> dict[str, Manifest]:
    """The pod of the head and of each group of workers."""
    cluster = manifest["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {name: group["template"]["spec"] for name, group in {"head": cluster["headGroupSpec"], **workers}.items()}


def gpu_group(manifest: Manifest) -> Manifest:
    groups: list[Manifest] = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return next(group for group in groups if group["groupName"] == "gpu")


def amount(quantity: str | int) -> float:
    """Kubernetes' quantity as a number: 48Gi, 500m, 2."""
    number, unit = re.fullmatch(r"(\d+)(\w*)", str(quantity)).groups()
    return int(number) * {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30}[unit]


# What KubeRay takes.


@each_job
def test_the_operator_takes_it(job: str) -> None:
    assert refusals(read_job(job)) == []


@each_job
def test_the_operator_takes_it_with_redis(job: str) -> None:
    manifest = yaml.safe_load(with_redis(read_text(job)))
    assert manifest["spec"]["entrypointNumCpus"] == 1
    assert manifest["spec"]["rayClusterSpec"]["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
    assert refusals(manifest) == []


def _change(cluster: Manifest, *path: str | int, to: Any) -> None:
    *parents, last = path
    for name in parents:
        cluster = cluster[name]
    cluster[last] = to


SLIPS: dict[str, Callable[[Manifest, Manifest], object]] = {
    "metadata.name": lambda job, cluster: _change(job, "metadata", "name", to="Label_1"),
    "ttlSecondsAfterFinished": lambda job, cluster: job["spec"].pop("shutdownAfterJobFinishes"),
    "backoffLimit": lambda job, cluster: _change(job, "spec", "backoffLimit", to=-1),
    "rayVersion": lambda job, cluster: cluster.pop("rayVersion"),
    "rayVersion: '2.51.0'": lambda job, cluster: _change(cluster, "rayVersion", to="2.51.0"),
    "head: no container": lambda job, cluster: _change(
        cluster, "headGroupSpec", "template", "spec", "containers", to=[]
    ),
    "head: resources": lambda job, cluster: _change(cluster, "headGroupSpec", "resources", to={"CPU": "0"}),
    "gpu: labels": lambda job, cluster: _change(cluster, "workerGroupSpecs", 0, "rayStartParams", to={"labels": "a=b"}),
    "gpu: minReplicas 3, maxReplicas 2": lambda job, cluster: cluster["workerGroupSpecs"][0].update(
        minReplicas=3, maxReplicas=2
    ),
    "gpu: restartPolicy": lambda job, cluster: _change(
        cluster, "workerGroupSpecs", 0, "template", "spec", "restartPolicy", to="Always"
    ),
    "RAY_REDIS_ADDRESS": lambda job, cluster: _change(
        cluster, "headGroupSpec", "template", "spec", "containers", 0, "env", to=[{"name": "RAY_REDIS_ADDRESS"}]
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_refused(slip: str) -> None:
    manifest = read_job("label")
    SLIPS[slip](manifest, manifest["spec"]["rayClusterSpec"])
    assert [refusal for refusal in refusals(manifest) if refusal.startswith(slip)]


@pytest.mark.skipif(CRDS is None, reason="KUBERAY_CRDS names no folder with KubeRay's CRDs (ray.io_rayjobs.yaml)")
def test_it_has_the_fields_of_kuberays_schema() -> None:
    schema = read_schema(Path(str(CRDS)), "rayjobs")
    for job in JOBS:
        assert schema_errors(read_job(job), schema) == []
        assert schema_errors(yaml.safe_load(with_redis(read_text(job))), schema) == []
    misspelt, mistyped = read_job("label"), read_job("label")
    misspelt["spec"]["backofLimit"] = misspelt["spec"].pop("backoffLimit")
    mistyped["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    assert any("backofLimit" in error for error in schema_errors(misspelt, schema))
    assert any("num-cpus" in error for error in schema_errors(mistyped, schema))


# Commands.


@each_job
@pytest.mark.parametrize("page", ["deploy/rayjob-{job}.yaml", "docs/cluster.md"])
def test_the_command_for_users_leaves_nothing_to_put_in(job: str, page: str) -> None:
    (edits,) = re.findall(r"sed '([^']*)' deploy/rayjob-", (REPOSITORY / page.format(job=job)).read_text())
    edited = subprocess.run(["sed", edits], input=read_text(job), capture_output=True, text=True, check=True).stdout
    assert not re.search("BUCKET|YOUR_", yaml.safe_dump(yaml.safe_load(edited)))


def parse(manifest: Manifest, job: str, run_type: type[Any]) -> Any:
    program, *arguments = shlex.split(manifest["spec"]["entrypoint"])
    assert [program, *arguments[:2]] == ["python", "-m", f"jobs.{job}"]
    return cli.parse_run(run_type, prog=job, argv=arguments[2:])


def test_labelling_grows_to_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    manifest = read_job("label")
    run, group = parse(manifest, "label", LabelRun), gpu_group(manifest)
    assert run.label.use_gpu is True
    assert run.label.max_workers == group["maxReplicas"] * gpus(group)


def test_training_takes_all_gpus_and_goes_on_without_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    manifest = read_job("train")
    run, group = parse(manifest, "train", TrainRun), gpu_group(manifest)
    assert run.train.use_gpu is True
    assert run.train.num_workers == group["maxReplicas"] * gpus(group)
    assert 0 < run.train.min_workers <= (group["maxReplicas"] - 1) * gpus(group)


def limits(manifest: Manifest) -> Capacity:
    """What the job learns of the autoscaler's limits, before there is any machine but the head."""
    cluster = {"metadata": {"name": "mine", "namespace": "ml"}, "spec": manifest["spec"]["rayClusterSpec"]}
    description = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
    return Capacity((), node_types(description), description["max_workers"])


def test_labelling_knows_of_room_for_all_its_workers() -> None:
    capacity = limits(read_job("label"))
    assert capacity.node_types == (
        NodeType("gpu", {"CPU": 14.0, "GPU": 1.0}, 16),
        NodeType("cpu", {"CPU": 14.0}, 8),
    )
    workers = Demand("", "", ({"CPU": 1.0, "GPU": 1.0},) * 16, "")
    assert placed_ever(workers, capacity) == 16


def test_training_knows_of_room_for_all_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    manifest = read_job("train")
    run = parse(manifest, "train", TrainRun)
    assert placed_ever(training_demand(run, cpus=1, readers=0), limits(manifest)) == run.train.min_workers
    all_workers = replace(run, train=replace(run.train, min_workers=0))
    assert placed_ever(training_demand(all_workers, cpus=1, readers=0), limits(manifest)) == run.train.num_workers


def gpus(group: Manifest) -> int:
    number: int = group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    return number


@each_job
def test_nothing_runs_before_or_after_the_job_and_a_failed_one_is_given_again(job: str) -> None:
    manifest = read_job(job)
    groups = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert {(group["minReplicas"], group["replicas"]) for group in groups} == {(0, 0)}
    assert manifest["spec"]["shutdownAfterJobFinishes"] is True
    assert manifest["spec"]["backoffLimit"] > 0


# Pods.


@each_job
def test_every_pod_has_the_image_the_secret_shared_memory_and_no_root(job: str) -> None:
    images = set()
    for name, pod in pods(read_job(job)).items():
        (container,) = pod["containers"]
        (volume,) = pod["volumes"]
        images.add(container["image"])
        assert container["envFrom"] == [{"secretRef": {"name": "maskrcnn-s3", "optional": True}}], name
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}], name
        assert volume["emptyDir"]["medium"] == "Memory", name
        assert amount(volume["emptyDir"]["sizeLimit"]) < 0.3 * amount(container["resources"]["limits"]["memory"]), name
        assert container["resources"]["requests"] == container["resources"]["limits"], name
        assert pod["securityContext"] == {"runAsNonRoot": True}, name
    assert len(images) == 1


@each_job
def test_gpus_are_where_they_are_tolerated_and_nowhere_else(job: str) -> None:
    manifest = read_job(job)
    cluster = manifest["spec"]["rayClusterSpec"]
    for name, pod in pods(manifest).items():
        tolerated = {toleration["key"] for toleration in pod.get("tolerations", [])}
        assert ("nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]) == (name == "gpu")
        assert ("nvidia.com/gpu" in tolerated) == (name == "gpu")
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}


def test_rays_store_leaves_shared_memory_to_loader_processes() -> None:
    group = gpu_group(read_job("train"))
    shared = amount(group["template"]["spec"]["volumes"][0]["emptyDir"]["sizeLimit"])
    assert int(group["rayStartParams"]["object-store-memory"]) < 0.25 * shared


@each_job
def test_prometheus_finds_the_ports(job: str) -> None:
    monitor = yaml.safe_load((REPOSITORY / "deploy/podmonitor.yaml").read_text())
    head = pods(read_job(job))["head"]["containers"][0]
    watched = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    assert watched <= {port["name"] for port in head["ports"]}
