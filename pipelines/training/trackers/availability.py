"""What the trackers of a run need, looked for before it starts."""

import importlib.util
import netrc
import os
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from maskrcnn_core.errors import ConfigError
from pipelines import storage
from pipelines.training.config import TrainRun

_PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}
_PREFIXES = ("MLFLOW_", "WANDB_")
_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
_WANDB_SERVER = "https://api.wandb.ai"
_OFFLINE = ("offline", "dryrun")


def check_trackers(run: TrainRun) -> dict[str, str]:
    """Make sure that the trackers can work.

    Returns:
        The variables of this process that they read, for a worker on another machine.

    Raises:
        ConfigError: a package is missing, or it is not said where a tracker keeps its runs.
    """
    needed = [name for name in run.train.trackers if name != "tensorboard"]
    for name in needed:
        require_installed(name)
    environment = {name: value for name, value in os.environ.items() if needed and name.startswith(_PREFIXES)}
    if "mlflow" in needed:
        _require_mlflow_store(run.output, environment)
    if "wandb" in needed:
        environment |= _wandb_access(run.output, environment)
    return environment


def require_installed(name: str) -> None:
    """Make sure that this machine has the package of a tracker.

    Raises:
        ConfigError: it has not; says how to install it.
    """
    if importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"train.trackers: {name} is not installed on {socket.gethostname()}; expected the package of each tracker "
            f"on every machine: python -m pip install {_PACKAGES[name]} (or the extra `trackers` of this project)"
        )


def _require_mlflow_store(output: str, environment: Mapping[str, str]) -> None:
    if not environment.get("MLFLOW_TRACKING_URI") and not storage.is_local(output):
        raise ConfigError(
            f"train.trackers: mlflow has no place for its runs: MLFLOW_TRACKING_URI is not set, and {output} is not a "
            "local folder; set it to the address of a server (export MLFLOW_TRACKING_URI=https://...)"
        )


def _wandb_access(output: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What lets a worker write to the server: the key that `wandb login` has left, where no variable has it."""
    if environment.get("WANDB_MODE") in _OFFLINE:
        if not storage.is_local(output):
            raise ConfigError(
                f"train.trackers: WANDB_MODE={environment['WANDB_MODE']} would leave the files of wandb on one of the "
                f"workers, because {output} is not a local folder; unset it, or give a local output"
            )
        return {}
    if environment.get("WANDB_MODE") == "disabled" or any(environment.get(name) for name in _KEYS):
        return {}
    server = environment.get("WANDB_BASE_URL", _WANDB_SERVER)
    key = _stored_key(urlsplit(server).hostname or server)
    if key is None:
        raise ConfigError(
            f"train.trackers: wandb has no key for {server}; set WANDB_API_KEY, give the command `wandb login`, or set "
            "WANDB_MODE=offline"
        )
    return {"WANDB_API_KEY": key}


def _stored_key(host: str) -> str | None:
    """The password for a host in the user's netrc file."""
    try:
        entry = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return None if entry is None else entry[2]
