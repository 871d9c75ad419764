"""Proposals that a setting names: the output of `jobs.label --label.record proposals`, checked and opened."""

from maskrcnn_core.data.proposals import ProposalFiles
from maskrcnn_core.errors import ConfigError, StorageError
from maskrcnn_core.train_config import DatasetConfig, TrainRun
from pipelines import storage
from pipelines.label_files import label_files


def open_proposals(uri: str, name: str) -> ProposalFiles:
    """The proposals of a run's folder, of its `labels/` folder, or of one Parquet file.

    Args:
        uri: local or s3://.
        name: of the setting, for messages.

    Raises:
        StorageError: nothing is there, or it holds something else.
    """
    try:
        files = label_files(uri)
    except StorageError as error:
        raise StorageError(f"{name}: {error}; jobs.label --label.record proposals writes proposals") from error
    filesystem, _ = storage.filesystem_and_path(files[0])
    paths = [storage.filesystem_and_path(file)[1] for file in files]
    return ProposalFiles(paths, filesystem, f"{name} ({uri})")


def proposals_of(source: DatasetConfig, name: str) -> ProposalFiles | None:
    """The proposals of a data set; None where it names none.

    Args:
        source: of the configuration.
        name: of its section, for messages.

    Raises:
        StorageError: as `open_proposals`.
    """
    return open_proposals(source.proposals, f"{name}.proposals") if source.proposals else None


def check_proposal_settings(run: TrainRun) -> None:
    """Make sure that regions come from either an RPN or files.

    Raises:
        ConfigError: from neither, or from both.
    """
    val_used = bool(run.data.val.images or run.data.val.annotations)
    for name, source, is_used in (("data.train", run.data.train, True), ("data.val", run.data.val, val_used)):
        if source.proposals and run.model.rpn.enabled:
            raise ConfigError(
                f"{name}.proposals: given, but the model has an RPN that makes its own; set model.rpn.enabled false to "
                "learn from the given ones, or leave them out"
            )
        if is_used and not source.proposals and not run.model.rpn.enabled:
            raise ConfigError(
                f"{name}.proposals: not given, but model.rpn.enabled is false; expected the output of jobs.label "
                "--label.record proposals for these images"
            )
