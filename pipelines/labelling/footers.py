"""What the driver knows of a run's label files without their rows: counts, digest and size.

Workers tell of each file that they write, so that only the files of earlier starts are opened, once; many of them in
tasks.
"""

from collections.abc import Callable, Mapping, Sequence

from maskrcnn_core.errors import StorageError
from pipelines.images.manifest import Manifest, Tasks
from pipelines.labels import run_folder
from pipelines.labels.chunks import NOTHING, LabelFile, Tally, read_footers
from pipelines.labels.run_folder import FinishedFile

# A process reads some 100 to 500 footers a second from S3: more are read by the cluster, so many a task.
_MOST_FOOTERS_HERE = 2000
_FOOTERS_OF_A_TASK = 500


def footers_before(uris: Sequence[str], tasks: Callable[[], Tasks]) -> list[LabelFile]:
    """The footers of label files of earlier starts, in order.

    Args:
        uris: of the files.
        tasks: how work is spread, where that is worth it.

    Raises:
        StorageError: a file is damaged.
    """
    if len(uris) <= _MOST_FOOTERS_HERE:
        return read_footers(uris)
    starts = range(0, len(uris), _FOOTERS_OF_A_TASK)
    found = dict(tasks()(_read_some, [(start, uris[start : start + _FOOTERS_OF_A_TASK]) for start in starts]))
    return [footer for start in starts for footer in found[start]]


def _read_some(start: int, uris: Sequence[str]) -> tuple[int, list[LabelFile]]:
    return start, read_footers(uris)


def checked_files(output: str, manifest: Manifest, known: Mapping[str, LabelFile]) -> tuple[Tally, list[FinishedFile]]:
    """Counts over all label files, and the files, after making sure that each chunk has one and each file its rows.

    Args:
        output: folder of the run.
        manifest: of the run.
        known: files by name; one that has another size than it is known to have is opened.

    Raises:
        StorageError: it has not; files were changed while the run went on.
    """
    plan = run_folder.chunk_plan(output, manifest)
    sizes = run_folder.label_sizes(output)
    done, todo = run_folder.chunks_done(output, manifest, plan, sizes) if plan is not None else ([], [])
    as_known = {chunk.name: known[chunk.name] for chunk in done if _is_as_known(chunk.name, known, sizes)}
    others = [chunk for chunk in done if chunk.name not in as_known]
    read = read_footers([chunk.uri(output) for chunk in others])
    footers = as_known | {chunk.name: footer for chunk, footer in zip(others, read, strict=True)}
    wrong = [chunk.name for chunk in done if footers[chunk.name].tally.images != chunk.stop - chunk.start]
    if plan is None or todo or wrong:
        raise StorageError(
            f"output: {output!r} lacks {len(todo)} label files, and {len(wrong)} have another number of rows than "
            f"their chunk{f', the first: {wrong[0]}' if wrong else ''}; was another process changing files there? "
            "Delete the wrong ones and repeat the command: what is missing is labelled"
        )
    files = [FinishedFile(chunk.name, sizes[chunk.name], footers[chunk.name].sha256) for chunk in done]
    return sum((footers[chunk.name].tally for chunk in done), NOTHING), files


def _is_as_known(name: str, known: Mapping[str, LabelFile], sizes: Mapping[str, int]) -> bool:
    return name in known and known[name].size == sizes[name]
