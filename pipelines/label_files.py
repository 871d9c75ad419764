"""Where the label files of a run are."""

from maskrcnn_core.errors import StorageError
from pipelines import storage


def label_files(uri: str) -> list[str]:
    """Parquet files of a label run's folder, of its `labels/` folder, or the one file itself.

    Raises:
        StorageError: there is none.
    """
    if not storage.exists(uri):
        raise StorageError(f"{uri}: no such file or folder; expected labels written by python -m jobs.label")
    if not storage.is_folder(uri):
        return [uri]
    inner = storage.join(uri, "labels")
    folder = inner if storage.is_folder(inner) else uri
    # Not from anywhere below: OUTPUT/_run holds Parquet files of another kind.
    files = [file for file in storage.list_files(folder, ".parquet") if "/_run/" not in file]
    if not files:
        raise StorageError(f"{folder}: no .parquet files; expected labels written by python -m jobs.label")
    return files
