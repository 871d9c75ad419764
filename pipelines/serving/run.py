"""Serve detectors on a cluster until told to stop."""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from maskrcnn_core.errors import ConfigError
from pipelines import storage
from pipelines.cluster.connection import connect, nodes, unwrapped_errors
from pipelines.serving.config import ServeRun, named_models
from pipelines.storage.checkpoint_copy import describe_checkpoint
from pipelines.storage.s3_settings import applied, settings_environment


@contextmanager
def serving(run: ServeRun, tell: Callable[[str], None] = lambda _: None) -> Iterator[str]:
    """The service, answering inside the block.

    Args:
        run: what to serve.
        tell: called with lines that say what is chosen.

    Yields:
        Its address.

    Raises:
        ConfigError: the settings, or the cluster, do not allow it.
        CheckpointError: a checkpoint cannot be used.
    """
    with applied(run.storage):
        check_run(run)
        with connect(run.cluster, environment=settings_environment(run.storage)), unwrapped_errors():
            yield from _served(run, tell)


def check_run(run: ServeRun) -> None:
    """Finds what is wrong before a cluster starts.

    Raises:
        ConfigError, CheckpointError: as `serving`.
    """
    from pipelines.serving.application import predictor_settings
    from pipelines.serving.keys import read_keys
    from pipelines.serving.label_studio.pictures import read_token

    if run.serve.keys:
        read_keys(run.serve.keys)
    if run.serve.label_studio_token:
        read_token(run.serve.label_studio_token)
    for checkpoint in named_models(run).values():
        describe_checkpoint(storage.absolute(checkpoint), predictor_settings(run.serve, use_gpu=False))


def _served(run: ServeRun, tell: Callable[[str], None]) -> Iterator[str]:
    from ray import serve

    from pipelines.serving.application import APPLICATION, application, application_arguments, changeable_options
    from pipelines.serving.deploy_file import instance_options

    use_gpu = run.serve.use_gpu if run.serve.use_gpu != "auto" else any(node.gpus for node in nodes())
    if serve.status().proxies:
        raise ConfigError(
            "cluster.address: Ray Serve is in use on this cluster already; write a file with --deploy_file FILE, and "
            "give it to `serve deploy`"
        )
    _require_free(run.host, run.port)
    arguments = application_arguments(run, use_gpu=use_gpu)
    tell(f"computing on {'GPUs' if use_gpu else 'CPUs'}; models: {', '.join(arguments['models'])}")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="EveryNode" if run.cluster.address else "HeadOnly", **instance_options(run))
    try:
        built = application(arguments, changeable_options(run, use_gpu=use_gpu))
        serve.run(built, name=APPLICATION, route_prefix="/")
        yield f"http://{run.host}:{run.port}"
    finally:
        serve.shutdown()


def _require_free(host: str, port: int) -> None:
    """Ray Serve only says so in a log."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port: {host}:{port} cannot be listened on ({error.strerror}); give another --port"
            ) from error


def wait_for_ever() -> None:
    """Until a signal ends it."""
    while True:
        time.sleep(1)
