"""The typed configuration of a detector behind Ray Serve."""

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.config.checks import (
    require,
    require_between,
    require_fraction,
    require_not_negative,
    require_positive,
    require_typed,
)
from maskrcnn_core.config.limits import MAX_REGIONS
from maskrcnn_core.errors import ConfigError
from pipelines.cluster.config import ClusterConfig
from pipelines.storage.config import StorageConfig

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SITE = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?")
_FETCHED_SCHEMES = ("s3://", "gs://", "az://", "abfs://")


@dataclass(frozen=True)
class ServeConfig:
    """How detectors answer, and what a request may cost."""

    use_gpu: bool | Literal["auto"] = "auto"
    """A GPU for each replica of a detector; auto = where the cluster has GPUs, or can start machines with them."""
    replicas: int = 1
    """Processes of each detector."""
    max_replicas: int = 0
    """Up to so many as requests come, and back to `replicas` when they go; 0 = always `replicas`."""
    ingress_replicas: int = 1
    """Processes that read requests, check them and write answers; each counts requests and keys by itself."""
    threads: int = 0
    """CPU threads of each detector; 0 = its share of the machine's cores."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network."""
    batch_pixels: int = 0
    """Upper limit of padded input pixels in one batch; one image is always taken. 0 = one image at a time on a CPU,
    where a batch only fills the caches, and 9,000,000 on a GPU."""
    batch_wait_ms: float = 5.0
    """How long an image waits for others while the detector is busy anyway; an idle one starts at once."""
    images_under_way: int = 64
    """Images that a replica of a detector takes on at once; those are what batches are made of."""
    min_score: float | None = None
    """Drop detections below this score; null = as in the checkpoint. A request can only ask for less."""
    max_detections: int | None = None
    """Detections kept per image; null = as in the checkpoint. A request can only ask for less."""
    exif_orientation: Literal["apply", "ignore"] = "apply"
    """Turn images by their EXIF tag."""
    max_pixels: int = 50_000_000
    """Larger images are refused by their header, pixels."""
    max_bytes: int = 32 << 20
    """Larger bodies are refused while they come, bytes."""
    max_images: int = 16
    """Images of one request."""
    max_requests: int = 128
    """Requests that an ingress replica works on at once; more are answered with 503 and Retry-After."""
    timeout: float = 60.0
    """Seconds from a request's first byte to its answer; then 504, or 408 where its body is still coming."""
    keys: str = ""
    """File with a line `NAME SHA256` for each key that may be used; empty = no key is asked for."""
    requests_per_minute: int = 0
    """Requests of one key, or without keys of one address, in each ingress replica; more are answered with 429; 0 = any
    number."""
    uris: tuple[str, ...] = ()
    """Folders of object stores, such as s3://bucket/folder, whose images may be asked for by name; empty = none."""
    label_studio: str = ""
    """Address of the Label Studio whose tasks are predicted, such as http://localhost:8080; empty = none, and of tasks
    only pictures below `uris` are read."""
    label_studio_token: str = ""
    """File with the API token of one of its users, which its pictures are fetched with; empty = none is sent."""
    label_studio_min_score: float = 0.5
    """Weaker objects are not predicted for Label Studio."""
    open_to_all: bool = False
    """Listen on other addresses than this machine's own though no key is asked for."""
    grpc_port: int = 0
    """Port of the Open Inference Protocol by gRPC; 0 = none. Ray Serve opens it on all addresses of the machine."""

    def __post_init__(self) -> None:
        require_typed("serve", self)
        for name in ("replicas", "ingress_replicas", "images_under_way", "max_pixels", "max_bytes", "max_images"):
            require_positive(f"serve.{name}", getattr(self, name))
        for name in ("max_requests", "timeout"):
            require_positive(f"serve.{name}", getattr(self, name))
        for name in ("threads", "batch_pixels", "batch_wait_ms", "requests_per_minute", "max_replicas"):
            require_not_negative(f"serve.{name}", getattr(self, name))
        require(
            self.max_replicas == 0 or self.max_replicas >= self.replicas,
            "serve.max_replicas",
            self.max_replicas,
            f"0, or at least serve.replicas ({self.replicas})",
        )
        require_between("serve.grpc_port", self.grpc_port, 0, 65535)
        if self.min_score is not None:
            require_fraction("serve.min_score", self.min_score)
        if self.max_detections is not None:
            require_between("serve.max_detections", self.max_detections, 1, MAX_REGIONS)
        require_fraction("serve.label_studio_min_score", self.label_studio_min_score)
        plain = self.label_studio == "" or _SITE.fullmatch(self.label_studio) is not None
        require(plain, "serve.label_studio", self.label_studio, "an address such as http://localhost:8080")
        require(
            self.label_studio != "" or self.label_studio_token == "",
            "serve.label_studio_token",
            self.label_studio_token,
            "none without serve.label_studio",
        )
        for uri in self.uris:
            named = uri.startswith(_FETCHED_SCHEMES) and len(uri.split("://", 1)[1].strip("/")) > 0
            require(named, "serve.uris", uri, f"a folder that begins with {', '.join(_FETCHED_SCHEMES)}")


@dataclass(frozen=True)
class ServeRun:
    """Answer requests for detections over HTTP."""

    checkpoint: str | None = None
    """Checkpoint folder, served under the name `default`."""
    models: tuple[str, ...] = ()
    """More of them as NAME=FOLDER; the first of all is used where a request names none."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port of HTTP."""
    deploy_file: str = ""
    """Write a file for `serve deploy` to this path instead of serving."""
    serve: ServeConfig = field(default_factory=ServeConfig)
    """Detectors and limits."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """S3."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray cluster."""

    def __post_init__(self) -> None:
        require_typed("", self)
        require_between("port", self.port, 1, 65535)
        named_models(self)
        require(
            self.serve.keys != "" or self.serve.open_to_all or is_loopback(self.host),
            "host",
            self.host,
            "127.0.0.1 where no key is asked for; give --serve.keys FILE, or --serve.open_to_all true",
        )


def named_models(run: ServeRun) -> dict[str, str]:
    """Checkpoint by name, the default first.

    Raises:
        ConfigError: there is none, a name is not fit for a path of the API, or stands twice.
    """
    models = {} if run.checkpoint is None else {"default": run.checkpoint}
    for entry in run.models:
        name, separator, folder = entry.partition("=")
        fits = bool(separator and folder and _MODEL_NAME.fullmatch(name))
        require(fits, "models", entry, "NAME=FOLDER, the name of letters, digits, `.`, `_` and `-`")
        require(name not in models, "models", entry, f"each name once; {name} is there already")
        models[name] = folder
    if not models:
        raise ConfigError("checkpoint: not given; expected --checkpoint FOLDER, or --models '[NAME=FOLDER, ...]'")
    return models


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
