"""Proposals that a setting names, checked and opened: rows of jobs.label --label.record proposals or jobs.propose."""

from maskrcnn_core.data.proposals import ProposalFiles
from maskrcnn_core.errors import StorageError
from pipelines import storage
from pipelines.labels.files import label_files


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
        raise StorageError(
            f"{name}: {error}; jobs.label --label.record proposals and jobs.propose write proposals"
        ) from error
    filesystem, _ = storage.filesystem_and_path(files[0])
    paths = [storage.filesystem_and_path(file)[1] for file in files]
    return ProposalFiles(paths, filesystem, f"{name} ({uri})")
