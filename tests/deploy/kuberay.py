"""What KubeRay's operator refuses in RayJobs and RayServices, as far as it concerns deploy/'s, in words of our own.

The rules are those of KubeRay 1.7.0, ray-operator/controllers/ray/utils/validation.go: ValidateRayJobMetadata,
ValidateRayJobSpec and ValidateRayClusterSpec. Its schema says which fields there are and of what types.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Manifest = dict[str, Any]

_LONGEST_NAME = 47
_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_FIRST_RAY_WITH_TOKENS = (2, 52, 0)
_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")


def refusals(job: Manifest) -> list[str]:
    """What the operator would refuse the RayJob for; empty = it takes it."""
    return [*_of_job(job), *_of_cluster(job["spec"]["rayClusterSpec"])]


def refusals_of_service(service: Manifest) -> list[str]:
    """The same of a RayService (ValidateRayServiceMetadata and ValidateRayServiceSpec)."""
    name, cluster = service["metadata"]["name"], service["spec"]["rayClusterConfig"]
    named = len(name) <= _LONGEST_NAME and _DNS_LABEL.fullmatch(name) is not None
    kind = service["spec"].get("upgradeStrategy", {}).get("type", "NewCluster")
    return [
        *([] if named else [f"metadata.name: {name}"]),
        *([] if kind in ("None", "NewCluster") else [f"upgradeStrategy.type: {kind}"]),
        *_of_cluster(cluster),
    ]


def _of_job(job: Manifest) -> Iterator[str]:
    name, spec = job["metadata"]["name"], job["spec"]
    if len(name) > _LONGEST_NAME or not _DNS_LABEL.fullmatch(name):
        yield f"metadata.name: {name}"
    if spec.get("ttlSecondsAfterFinished", 0) and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    for field, least in (
        ("ttlSecondsAfterFinished", 0),
        ("backoffLimit", 0),
        ("activeDeadlineSeconds", 1),
        ("preRunningDeadlineSeconds", 1),
    ):
        if spec.get(field, least) < least:
            yield f"{field}: {spec[field]}"


def _of_cluster(cluster: Manifest) -> Iterator[str]:
    if cluster.get("authOptions", {}).get("mode") == "token":
        version = cluster.get("rayVersion", "")
        if not re.fullmatch(r"\d+\.\d+\.\d+", version) or _numbers(version) < _FIRST_RAY_WITH_TOKENS:
            yield f"rayVersion: {version!r} with tokens"
    for name, group in _groups(cluster):
        yield from (f"{name}: {refusal}" for refusal in _of_group(group))
    yield from _of_autoscaling(cluster)
    yield from _of_fault_tolerance(cluster)


def _of_group(group: Manifest) -> Iterator[str]:
    if not group["template"]["spec"].get("containers"):
        yield "no container"
    start = group.get("rayStartParams", {})
    if group.get("resources") and any(start.get(name) for name in _RESOURCES):
        yield "resources beside those of rayStartParams"
    if "labels" in start:
        yield "labels in rayStartParams"


def _of_autoscaling(cluster: Manifest) -> Iterator[str]:
    scales, options = cluster.get("enableInTreeAutoscaling", False), cluster.get("autoscalerOptions", {})
    is_v2 = scales and options.get("version") == "v2"
    for group in cluster.get("workerGroupSpecs", []):
        least, most = group.get("minReplicas"), group.get("maxReplicas")
        if not scales and None in (least, most):
            yield f"{group['groupName']}: no minReplicas or maxReplicas without autoscaling"
        if not 0 <= (least or 0) <= (most if most is not None else least or 0):
            yield f"{group['groupName']}: minReplicas {least}, maxReplicas {most}"
        if "idleTimeoutSeconds" in group and not is_v2:
            yield f"{group['groupName']}: idleTimeoutSeconds without version v2 of the autoscaler"
        if group.get("suspend"):
            yield f"{group['groupName']}: suspend"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds below 0"
    by_variable = "RAY_enable_autoscaler_v2" in _head_variables(cluster)
    if by_variable and (not scales or "version" in options):
        yield "RAY_enable_autoscaler_v2 beside autoscalerOptions.version, or without autoscaling"
    if is_v2:
        for name, group in _groups(cluster):
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                yield f"{name}: restartPolicy with version v2 of the autoscaler"


def _of_fault_tolerance(cluster: Manifest) -> Iterator[str]:
    options, variables = cluster.get("gcsFaultToleranceOptions"), _head_variables(cluster)
    start = cluster["headGroupSpec"].get("rayStartParams", {})
    if "RAY_REDIS_ADDRESS" in variables:
        yield "RAY_REDIS_ADDRESS; it is gcsFaultToleranceOptions.redisAddress"
    if "REDIS_USERNAME" in variables or start.get("redis-username"):
        yield "a user of Redis outside gcsFaultToleranceOptions"
    if options is None:
        return
    if "REDIS_PASSWORD" in variables or start.get("redis-password"):
        yield "a password of Redis outside gcsFaultToleranceOptions"
    if options.get("backend", "redis") == "redis" and "storage" in options:
        yield "gcsFaultToleranceOptions.storage with Redis"


def _groups(cluster: Manifest) -> list[tuple[str, Manifest]]:
    workers = cluster.get("workerGroupSpecs", [])
    return [("head", cluster["headGroupSpec"]), *((group["groupName"], group) for group in workers)]


def _head_variables(cluster: Manifest) -> set[str]:
    containers = cluster["headGroupSpec"]["template"]["spec"].get("containers") or [{}]
    return {variable["name"] for variable in containers[0].get("env", [])}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def read_schema(folder: Path, kind: str) -> Manifest:
    """The schema of a kind at version v1, in which a field that is not known is an error, as `kubectl` has it.

    Args:
        folder: with KubeRay's definitions (helm-chart/kuberay-operator/crds of its repository).
        kind: in the plural, such as "rayjobs".
    """
    definition = yaml.load((folder / f"ray.io_{kind}.yaml").read_text(), Loader=yaml.CSafeLoader)
    version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
    schema: Manifest = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    return schema


def _strict(schema: Any) -> Any:
    """OpenAPI of Kubernetes as JSON schema."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(part) for name, part in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("anyOf", None)
        strict["type"] = ["integer", "string"]
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict) and not is_open:
        strict["additionalProperties"] = False
    return strict


def schema_errors(manifest: Manifest, schema: Manifest) -> list[str]:
    """Where a manifest departs from a schema, and how."""
    errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in errors]
