"""`ray job submit` of a training to a head that asks for a token, with data, checkpoints and logs on S3."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import boto3
import pytest
import yaml

from pipelines import storage
from pipelines.checkpoint_store import list_checkpoints
from pipelines.training_samples import read_samples
from tests.pipelines.test_training import IMAGES, SMALL, small_run, write_data
from tests.pipelines.test_training_equivalence import descendants

_REPOSITORY = Path(__file__).resolve().parents[2]
_TOKEN = "a-token-of-the-test-" + "0" * 24
_STEPS = 6


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_for_listener(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 300.0
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline
            time.sleep(0.2)


def stop(process: "subprocess.Popen[bytes]") -> None:
    for pid in [*descendants(process.pid), process.pid]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on an S3 server that is a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_listener(port, server)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        yield "s3://bucket"
    finally:
        stop(server)


@pytest.fixture
def head(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray head that asks for a token; the environment holds none."""
    dashboard = free_port()
    arguments = {
        "port": free_port(),
        "dashboard-port": dashboard,
        "ray-client-server-port": free_port(),
        "dashboard-agent-listen-port": free_port(),
        "dashboard-agent-grpc-port": free_port(),
        "num-cpus": 4,
        "object-store-memory": 200 * 2**20,
    }
    # Short, because Ray's sockets lie below it and their paths end at 107 bytes.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    options = [f"--{name}={value}" for name, value in arguments.items()]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--temp-dir={folder}"]
    process = subprocess.Popen([*command, *options], env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for_listener(dashboard, process)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def upload(folder: Path, uri: str) -> None:
    for path in (path for path in folder.rglob("*") if path.is_file()):
        storage.write_bytes_atomically(storage.join(uri, str(path.relative_to(folder))), path.read_bytes())


def working_directory(folder: Path, uri: str) -> Path:
    """What a user submits: the code, and settings."""
    for package in ("jobs", "pipelines", "maskrcnn_core"):
        shutil.copytree(_REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    run = small_run(Path("unused"), write_data(folder.parent / "data"), steps=_STEPS, validate_every=0, pictures=1)
    upload(folder.parent / "data", f"{uri}/data")
    source = {"images": f"{uri}/data/images", "annotations": f"{uri}/data/instances.json"}
    settings = {
        "output": f"{uri}/run",
        "model": asdict(SMALL),
        "data": {"train": source, "val": source},
        "train": asdict(run.train),
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(settings))))
    return folder


def submit(address: str, folder: Path, token: str | None) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "RAY_AUTH_MODE": "token" if token else "disabled"}
    environment.update({"RAY_AUTH_TOKEN": token} if token else {})
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    runtime = json.dumps({"env_vars": {name: os.environ[name] for name in names}})
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", address]
    command += ["--working-dir", str(folder), "--runtime-env-json", runtime, "--"]
    command += [sys.executable, "-m", "jobs.train", "--config", "run.yaml"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(2400)
def test_a_submitted_training_leaves_everything_on_s3(head: str, bucket: str, tmp_path: Path) -> None:
    folder = working_directory(tmp_path / "work", bucket)
    refused = submit(head, folder, None)
    assert refused.returncode != 0
    assert "401" in refused.stdout + refused.stderr or "nauthorized" in refused.stdout + refused.stderr

    submitted = submit(head, folder, _TOKEN)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert f"finished: {_STEPS} steps" in submitted.stdout
    output = f"{bucket}/run"
    for name in ("checkpoints/last/model.safetensors", "checkpoints/last/config.json", "summary.json", "data.json"):
        assert storage.exists(f"{output}/{name}"), name
    assert [stored.step for stored in list_checkpoints(f"{output}/resume")] == [_STEPS, _STEPS - 3]
    assert [uri for uri in storage.list_files(f"{output}/tensorboard") if "events.out.tfevents" in uri]
    assert sorted(read_samples(output)) == list(range(_STEPS))
    assert all(1 <= image <= IMAGES for images in read_samples(output).values() for image in images)

    again = submit(head, folder, _TOKEN)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"already finished: {_STEPS} steps" in again.stdout
