"""`ray job submit`, and what it needs: servers as processes of their own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from pipelines import storage
from tests.processes import descendants

_REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-the-test-" + "0" * 24


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


def upload(folder: Path, uri: str) -> None:
    for path in (path for path in folder.rglob("*") if path.is_file()):
        storage.write_bytes_atomically(storage.join(uri, str(path.relative_to(folder))), path.read_bytes())


def copy_code(folder: Path) -> None:
    """The packages, as a user's working folder has them."""
    for package in ("jobs", "pipelines", "maskrcnn_core"):
        shutil.copytree(_REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))


def submit(address: str, folder: Path, token: str | None, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`ray job submit` of `python ARGUMENTS` in a working folder."""
    environment = {**os.environ, "RAY_AUTH_MODE": "token" if token else "disabled"}
    environment.update({"RAY_AUTH_TOKEN": token} if token else {})
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    runtime = json.dumps({"env_vars": {name: os.environ[name] for name in names}})
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", address]
    command += ["--working-dir", str(folder), "--runtime-env-json", runtime, "--"]
    command += [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
