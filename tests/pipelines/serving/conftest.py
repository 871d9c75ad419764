"""One small service that tests of the serving share."""

from collections.abc import Iterator

import pytest

from pipelines.serving.config import ServeConfig
from tests.pipelines.serving.local_service import (
    LocalDetector,
    LocalServer,
    local_server,
    new_service,
    save_finding_detector,
)


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_finding_detector(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="package")
def server(checkpoint: str) -> Iterator[LocalServer]:
    """With a model `default`, of at most 1 MB and 100,000 pixels an image, four images a request."""
    service = new_service(max_pixels=100_000)
    config = ServeConfig(max_pixels=100_000, max_bytes=1_000_000, max_images=4, timeout=30.0)
    with local_server({"default": LocalDetector(service)}, config) as server:
        server.run(service.use(checkpoint))
        yield server
        service.close()
