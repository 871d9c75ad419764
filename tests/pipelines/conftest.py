"""Servers of object stores: one that goes wrong as asked, and processes of their own for jobs that are submitted."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.pipelines.object_server import ObjectServer, object_server
from tests.pipelines.submission import TOKEN, free_port, stop, wait_for_listener


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
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--temp-dir={folder}"]
    process = subprocess.Popen([*command, *options], env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for_listener(dashboard, process)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """A server that the environment names as S3, Google's and Azure's."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_", "MASKRCNN_STORAGE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("pipelines.storage.files._PAUSE_SECONDS", 0.01)
    with object_server() as server:
        environment = {
            "AWS_ENDPOINT_URL": server.address,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "GOOGLE_BASE_URL": server.address,
            "GOOGLE_BEARER_TOKEN": "token",
            "AZURE_STORAGE_ENDPOINT": server.address,
            "AZURE_STORAGE_ACCOUNT_NAME": "account",
            "AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0",
            "MASKRCNN_STORAGE_MAX_ATTEMPTS": "2",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield server
