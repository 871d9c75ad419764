"""The whole application without Ray: routes of all protocols, with the gate around them, in front of any detectors."""

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import FastAPI

from pipelines.serving.api_page import add_api_page
from pipelines.serving.config import ServeConfig
from pipelines.serving.counts import Counts
from pipelines.serving.gate import Gate, GateLimits
from pipelines.serving.http_api import ApiSettings, DetectionApi, DetectorClient, add_detection_api
from pipelines.serving.inference_protocol.grpc_service import InferenceService
from pipelines.serving.inference_protocol.rest import add_inference_protocol
from pipelines.serving.keys import read_keys
from pipelines.serving.label_studio.backend import add_label_studio
from pipelines.serving.label_studio.pictures import LabelStudioSite, read_token
from pipelines.serving.page.page import page_routes
from pipelines.serving.request_rates import RequestRates
from pipelines.serving.uploads import UploadLimits


@dataclass(frozen=True)
class Guarded:
    """The application.

    Attributes:
        gate: what a server of HTTP calls.
        app: the routes behind it.
        service: answers gRPC, with the same limits.
    """

    gate: Gate
    app: FastAPI
    service: InferenceService


def guarded(models: Mapping[str, DetectorClient], config: ServeConfig) -> Guarded:
    """The application in front of detectors by name, the default first.

    Raises:
        ConfigError: the file of keys, or that of Label Studio's token, cannot be used.
    """
    counts = Counts()
    uploads = UploadLimits(config.max_images, config.max_bytes, config.max_pixels, tuple(config.uris))
    api = DetectionApi(models, ApiSettings(uploads, config.timeout, config.exif_orientation == "apply"), counts)
    app = FastAPI(
        title="Detections",
        description="Boxes, masks and keypoints in images; the same records as bulk labelling writes.",
        version="1",
        docs_url=None,
        redoc_url=None,
    )
    add_detection_api(app, api)
    add_inference_protocol(app, api)
    token = read_token(config.label_studio_token) if config.label_studio_token else ""
    add_label_studio(app, api, LabelStudioSite(config.label_studio, token), config.label_studio_min_score)
    add_api_page(app)
    app.router.routes.extend(page_routes())
    keys = read_keys(config.keys) if config.keys else None
    limits = GateLimits(config.max_bytes, config.max_requests, config.timeout)
    gate = Gate(app, limits, keys, RequestRates(config.requests_per_minute), counts)
    return Guarded(gate, app, InferenceService(api, gate, config.timeout, config.max_bytes))
