"""Propose regions of an image collection without a network: exactly one Parquet row per image, resumable at any moment.

It is a run of the labelling, on one machine or on Ray, with another detector and rows of proposals.
"""

from collections.abc import Callable
from functools import partial

from maskrcnn_core.errors import StorageError
from maskrcnn_core.inference.code_fingerprint import fingerprint_of
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.region_proposals.proposer import versions
from maskrcnn_core.region_proposals.settings import ProposeConfig, deciding_values
from pipelines import storage
from pipelines.labelling.detector import Detector
from pipelines.labelling.progress import LabelProgress
from pipelines.labelling.run import LabelSummary, label
from pipelines.proposing.config import ProposeRun
from pipelines.proposing.proposer_stream import describe_proposer, load_proposer
from pipelines.storage.s3_settings import applied

_ENTRY = "maskrcnn_core.region_proposals.proposer"

# Seconds of an image of COCO's size, which the size of a file follows from: on one thread, as measured.
_SECONDS = {"selective_search": 1.5, "edge_boxes": 0.5, "grid": 0.01, "sliding_windows": 0.01}


def propose(
    run: ProposeRun,
    on_progress: Callable[[LabelProgress], None] | None = None,
    *,
    on_note: Callable[[str], None] = lambda _: None,
) -> LabelSummary:
    """Write one row of proposals for every image to OUTPUT/labels.

    The same call again continues a run that was interrupted, and does nothing for one that is finished.

    Args:
        run: of which images, how, where to.
        on_progress, on_note: as of `labelling.run.label`.

    Raises:
        ConfigError: what the method needs is not installed, or cannot be used; and as of `labelling.run.label`.
        StorageError, AnnotationError: as of `labelling.run.label`.
    """
    return label(run.labelling(), on_progress, detector=proposing_detector(run.propose), on_note=on_note)


def proposing_detector(config: ProposeConfig) -> Detector:
    """The method as the labelling takes its detectors.

    Raises:
        ConfigError: what the method needs is not installed, or cannot be read.
    """
    return Detector(
        load=partial(load_proposer, config),
        describe=partial(describe_proposer, config),
        settings=deciding_values(config) | versions(config),
        code=partial(fingerprint_of, _ENTRY),
        seconds_of_image=partial(_seconds_of_image, config),
    )


def _seconds_of_image(config: ProposeConfig, checkpoint: str, settings: PredictorSettings, threads: int) -> float:
    return _SECONDS[config.method]


def require_annotations(run: ProposeRun) -> None:
    """Make sure, before any work, that there is something to score against.

    Raises:
        StorageError: there is no such file.
    """
    if not run.annotations:
        return
    with applied(run.storage):
        if not storage.exists(run.annotations):
            raise StorageError(f"annotations: {run.annotations}: no such file; expected a COCO instances JSON")
