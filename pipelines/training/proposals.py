"""The proposals that a training names: which settings go with them."""

from maskrcnn_core.data.proposals import ProposalFiles
from maskrcnn_core.errors import ConfigError
from pipelines.labels.proposals import open_proposals
from pipelines.training.config import TrainRun
from pipelines.training.data_config import DatasetConfig


def proposals_of(paths: DatasetConfig, name: str) -> ProposalFiles | None:
    """The proposals of a data set; None where it names none.

    Args:
        paths: of the configuration.
        name: of its section, for messages.

    Raises:
        StorageError: as `open_proposals`.
    """
    return open_proposals(paths.proposals, f"{name}.proposals") if paths.proposals else None


def check_proposal_settings(run: TrainRun) -> None:
    """Make sure that regions come from either an RPN or files.

    Raises:
        ConfigError: from neither, or from both.
    """
    val_used = bool(run.data.val.images or run.data.val.annotations)
    for name, paths, is_used in (("data.train", run.data.train, True), ("data.val", run.data.val, val_used)):
        if paths.proposals and run.model.dense.enabled:
            raise ConfigError(
                f"{name}.proposals: given, but the model has an RPN that makes its own; set model.dense.enabled false "
                "to learn from the given ones, or leave them out"
            )
        if is_used and not paths.proposals and not run.model.dense.enabled:
            raise ConfigError(
                f"{name}.proposals: not given, but model.dense.enabled is false; expected the output of jobs.label "
                "--label.record proposals, or of jobs.propose, for these images"
            )
