"""The service on Ray Serve: an ingress that reads, checks and writes, and a deployment for each detector.

    client -> proxy of Ray Serve -> Ingress (Gate, routes) -> DetectorReplica of the model that is asked for

`build` makes it of plain arguments, so that `jobs.serve` and a file for `serve deploy` start the same one. The
checkpoint of a detector stands in its `user_config`: another one there is loaded in place, without a restart.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping
from dataclasses import asdict
from typing import Any

import ray.exceptions
from ray import serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from maskrcnn_core.inference.settings import PredictorSettings
from pipelines import storage
from pipelines.cluster.connection import own_node
from pipelines.cluster.cpus import physical_cores
from pipelines.serving.config import ServeConfig, ServeRun, named_models
from pipelines.serving.detector_feed import Detected, DetectorLost
from pipelines.serving.detector_service import DetectorService, ServedModel
from pipelines.serving.gate import Gate
from pipelines.serving.guarded import guarded
from pipelines.serving.inference_protocol.grpc_service import RawMessage

APPLICATION = "maskrcnn"

# Ray Serve's own limits lie behind ours, which answer with documents.
_SLACK = 64

# A replica may finish what it has for so long beyond a request's time.
_CLOSING_SECONDS = 10.0

_BUSY_GPU, _BUSY_CPU = 16, 2


class RemoteDetector:
    """`DetectorClient` of a deployment; what a replica took with it when it died is asked of another one, once."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def detect(self, content: bytes) -> Detected:
        """See `DetectorClient`."""
        try:
            first: Detected = await self._answer("detect", content)
            return first
        except ray.exceptions.RayActorError:
            pass
        again: Detected = await self._or_lost(self._answer("detect", content))
        return again

    async def describe(self) -> ServedModel:
        """See `DetectorClient`."""
        model: ServedModel = await self._or_lost(self._answer("describe"))
        return model

    async def _or_lost(self, question: Awaitable[Any]) -> Any:
        try:
            return await question
        except ray.exceptions.RayActorError as error:
            raise DetectorLost("its processes end") from error

    async def _answer(self, method: str, *arguments: Any) -> Any:
        response = getattr(self._handle, method).remote(*arguments)
        try:
            return await response
        except asyncio.CancelledError:  # out of time, or the client has left: nobody waits for it
            response.cancel()
            raise
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise DetectorLost(str(error)) from error


class DetectorReplica:
    """A `DetectorService` as Ray Serve calls it."""

    def __init__(self, settings: PredictorSettings, threads: int, sharing: int, wait: float) -> None:
        from pipelines.storage.checkpoint_copy import load_predictor

        threads = threads or _share_of_cores(sharing, use_gpu=settings.device != "cpu")
        self._service = DetectorService(load_predictor, settings, threads=threads, wait=wait)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Ray Serve calls it at the start, where it raises if the checkpoint is no good, and for a new `user_config`.

        Then it returns at once: Ray Serve sends a replica no requests until it returns, and stops one where it raises.
        """
        if self._service.answers:
            self._service.use_soon(user_config["checkpoint"])
        else:
            await self._service.use(user_config["checkpoint"])

    async def detect(self, content: bytes) -> Detected:
        """See `DetectorService`."""
        return await self._service.detect(content)

    async def describe(self) -> ServedModel:
        """See `DetectorService`."""
        return self._service.describe()

    def check_health(self) -> None:
        """Called every few seconds; raising often enough replaces the replica."""
        self._service.check_health()

    async def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # its constructor failed
            await asyncio.to_thread(self._service.close)


def _share_of_cores(sharing: int, *, use_gpu: bool) -> int:
    """Threads of a detector on this machine, which at most `sharing` of them share."""
    if use_gpu:
        node = own_node()
        sharing = max(1, node.gpus if node else 1)
    return max(1, physical_cores() // sharing)


class Ingress:
    """The routes of all protocols, in front of the detectors."""

    def __init__(self, settings: Mapping[str, Any], names: list[str], *handles: DeploymentHandle) -> None:
        models = {name: RemoteDetector(handle) for name, handle in zip(names, handles, strict=True)}
        self._guarded = guarded(models, config_of(settings))

    def __serve_build_asgi_app__(self) -> Gate:
        return self._guarded.gate

    # The methods of `grpc_service.METHODS`; Ray Serve calls them by these names.

    async def ServerLive(self, request: bytes, grpc_context: Any) -> RawMessage:
        """Open Inference Protocol."""
        return await self._guarded.service.answer("ServerLive", request, grpc_context)

    async def ServerReady(self, request: bytes, grpc_context: Any) -> RawMessage:
        """Open Inference Protocol."""
        return await self._guarded.service.answer("ServerReady", request, grpc_context)

    async def ModelReady(self, request: bytes, grpc_context: Any) -> RawMessage:
        """Open Inference Protocol."""
        return await self._guarded.service.answer("ModelReady", request, grpc_context)

    async def ServerMetadata(self, request: bytes, grpc_context: Any) -> RawMessage:
        """Open Inference Protocol."""
        return await self._guarded.service.answer("ServerMetadata", request, grpc_context)

    async def ModelMetadata(self, request: bytes, grpc_context: Any) -> RawMessage:
        """Open Inference Protocol."""
        return await self._guarded.service.answer("ModelMetadata", request, grpc_context)

    async def ModelInfer(self, request: bytes, grpc_context: Any) -> RawMessage:
        """Open Inference Protocol."""
        return await self._guarded.service.answer("ModelInfer", request, grpc_context)


def config_of(settings: Mapping[str, Any]) -> ServeConfig:
    """Settings as a file has them."""
    given: dict[str, Any] = {**settings, "uris": tuple(settings.get("uris", ()))}
    return ServeConfig(**given)


def predictor_settings(config: ServeConfig, *, use_gpu: bool) -> PredictorSettings:
    """Of all detectors; the same as labelling's where the settings are the same."""
    return PredictorSettings(
        device="cuda" if use_gpu else "cpu",
        precision=config.precision,
        batch_pixels=config.batch_pixels,
        max_pixels=config.max_pixels,
        apply_exif=config.exif_orientation == "apply",
        min_score=config.min_score,
        max_detections=config.max_detections,
    )


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application of plain arguments, those of `application_arguments`, as a file for `serve deploy` names it.

    What may change without a restart (`changeable_options`) stands beside them there: Ray Serve starts everything anew
    where an argument changes.
    """
    return application(arguments, {})


def application(arguments: Mapping[str, Any], changeable: Mapping[str, Mapping[str, Any]]) -> serve.Application:
    """The same with options of the detectors by model."""
    config, use_gpu, names = config_of(arguments["serve"]), arguments["use_gpu"], arguments["models"]
    settings = predictor_settings(config, use_gpu=use_gpu)
    handles = [
        serve.deployment(DetectorReplica)
        .options(**detector_options(name, config, use_gpu=use_gpu), **changeable.get(name, {}))
        .bind(settings, config.threads, arguments["sharing"], config.batch_wait_ms / 1000)
        for name in names
    ]
    ingress = serve.deployment(serve.ingress()(Ingress)).options(**ingress_options(config))
    return ingress.bind(arguments["serve"], list(names), *handles)


def application_arguments(run: ServeRun, *, use_gpu: bool) -> dict[str, Any]:
    """What `build` takes, as YAML can hold it; of the settings those that are not the default."""
    usual = asdict(ServeConfig())
    settings = {name: value for name, value in asdict(run.serve).items() if value != usual[name]}
    for name in ("use_gpu", "replicas", "max_replicas"):  # which stand beside the settings
        settings.pop(name, None)
    settings |= {name: list(settings[name]) for name in ("uris",) if name in settings}
    settings |= {name: storage.absolute(settings[name]) for name in ("keys", "label_studio_token") if name in settings}
    names = list(named_models(run))
    sharing = max(run.serve.replicas, run.serve.max_replicas) * len(names)
    return {"models": names, "use_gpu": use_gpu, "sharing": sharing, "serve": settings}


def changeable_options(run: ServeRun, *, use_gpu: bool) -> dict[str, dict[str, Any]]:
    """By model what Ray Serve changes in place: the checkpoint, and the number of processes."""
    config = run.serve
    scale: dict[str, Any] = {"num_replicas": config.replicas}
    if config.max_replicas > config.replicas:
        # Running and waiting together: some batches of a GPU; on a CPU one image and the next.
        busy = _BUSY_GPU if use_gpu else _BUSY_CPU
        bounds = {"min_replicas": config.replicas, "max_replicas": config.max_replicas}
        scale = {"autoscaling_config": {**bounds, "target_ongoing_requests": busy}}
    return {
        name: {"user_config": {"checkpoint": storage.absolute(folder)}, **scale}
        for name, folder in named_models(run).items()
    }


def deployment_name(model: str) -> str:
    """Of a model's detector."""
    return f"detector-{model}"


def detector_options(name: str, config: ServeConfig, *, use_gpu: bool) -> dict[str, Any]:
    """Of a model's deployment, as Ray Serve takes them, without those of `changeable_options`."""
    return {
        "name": deployment_name(name),
        "max_ongoing_requests": config.images_under_way,
        # A machine takes as many as have threads there.
        "ray_actor_options": {"num_cpus": 1 if use_gpu else max(1, config.threads), "num_gpus": int(use_gpu)},
        "health_check_period_s": 5.0,
        "health_check_timeout_s": 30.0,
        "graceful_shutdown_timeout_s": config.timeout + _CLOSING_SECONDS,
        # A new process needs a GPU of its own before the old one gives its up.
        "max_surge_percent": 0 if use_gpu else 100,
    }


def ingress_options(config: ServeConfig) -> dict[str, Any]:
    """Of the ingress."""
    return {
        "name": "ingress",
        "num_replicas": config.ingress_replicas,
        "max_ongoing_requests": config.max_requests + _SLACK,
        "max_queued_requests": config.max_requests + _SLACK,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1.0},
        "max_surge_percent": 100,
        "ray_actor_options": {"num_cpus": 1},
        "health_check_period_s": 5.0,
        "health_check_timeout_s": 30.0,
        "graceful_shutdown_timeout_s": config.timeout + _CLOSING_SECONDS,
    }
