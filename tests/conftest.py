"""Fixtures that tests of several folders share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from maskrcnn_core.model.detector import Detector
from tests.alone import run_alone


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Tests that are marked `alone` are run in another process; None = in this one."""
    return run_alone(pyfuncitem) or None


@pytest.fixture(scope="session", autouse=True)
def shapes_of_a_gpu() -> None:
    """With FIXED_SIZE=1 in the environment a detector computes in the shapes of a GPU unless it is told otherwise."""
    if os.environ.get("FIXED_SIZE", "0") == "1":
        defaults = Detector.__init__.__kwdefaults__
        assert defaults is not None
        defaults["fixed_size_on"] = ("cpu", "cuda")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On the small tensors of tests a second thread costs more than it brings, and on a busy machine many times so."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Columns of annotation files that tests read stay with the tests."""
    os.environ["MASKRCNN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder `shared/data` beside the repository, with real COCO and nuclei images; the test is skipped without it."""
    folder = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not there: {folder}")
    return folder.resolve()


@pytest.fixture(scope="module")
def s3_folder() -> Iterator[str]:
    """`s3://bucket/folder` on an S3 server of this machine; the environment holds its address and keys meanwhile."""
    from urllib.request import Request, urlopen

    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # moto keeps objects for the life of the process, whatever server they came by.
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environment.setenv("AWS_REGION", "us-east-1")
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        yield "s3://bucket/folder"
    server.stop()
