"""The service as a file for `serve deploy`, and for the `serveConfigV2` of KubeRay's RayService."""

from pathlib import Path
from typing import Any

import yaml

from maskrcnn_core.errors import ConfigError, StorageError
from pipelines.serving.application import APPLICATION, application_arguments, build, changeable_options, deployment_name
from pipelines.serving.config import ServeRun
from pipelines.serving.inference_protocol.grpc_service import add_inference_service
from pipelines.storage.config import StorageConfig
from pipelines.storage.s3_settings import settings_environment

_HEAD = """\
# serve deploy {name}
#
# Another checkpoint in a `user_config`, and `serve deploy` again: it is loaded in place, and answers once it has been
# tried. Another number of replicas: processes come and go. Other arguments (`args`): all processes are replaced, one
# after the other. `http_options` and `grpc_options` hold until `serve shutdown`.
"""


def instance_options(run: ServeRun) -> dict[str, Any]:
    """Of Ray Serve itself, beside the application: where it listens, and what it logs."""
    servicers = [f"{add_inference_service.__module__}.{add_inference_service.__name__}"]
    port = run.serve.grpc_port
    return {
        # Time and size are the application's own limits, which answer with documents.
        "http_options": {"host": run.host, "port": run.port, "request_timeout_s": None},
        "grpc_options": {
            "port": port,
            "grpc_servicer_functions": servicers if port else [],
            "enable_reflection": False,
        },
        # An access log would hold what clients call their requests, unchecked.
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
    }


def deploy_document(run: ServeRun) -> dict[str, Any]:
    """What the file holds.

    Raises:
        ConfigError: it is left open whether detectors get GPUs, which nobody can find out without the cluster.
    """
    if run.serve.use_gpu == "auto":
        raise ConfigError("serve.use_gpu: got 'auto', expected true or false for a file of another cluster")
    instance = instance_options(run)
    if not run.serve.grpc_port:
        del instance["grpc_options"]
    application: dict[str, Any] = {
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": f"{build.__module__}:{build.__name__}",
        "args": application_arguments(run, use_gpu=run.serve.use_gpu),
        "deployments": [
            {"name": deployment_name(name), **options}
            for name, options in changeable_options(run, use_gpu=run.serve.use_gpu).items()
        ],
    }
    usual = settings_environment(StorageConfig())
    chosen = {name: value for name, value in settings_environment(run.storage).items() if usual.get(name) != value}
    if chosen:
        application["runtime_env"] = {"env_vars": chosen}
    return {"proxy_location": "EveryNode", **instance, "applications": [application]}


def write_deploy_file(run: ServeRun) -> None:
    """Writes it to `run.deploy_file`.

    Raises:
        ConfigError: as `deploy_document`.
        StorageError: it cannot be written.
    """
    path = Path(run.deploy_file)
    text = _HEAD.format(name=path.name) + yaml.safe_dump(deploy_document(run), sort_keys=False)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"deploy_file: {run.deploy_file!r} cannot be written ({error.strerror})") from error
