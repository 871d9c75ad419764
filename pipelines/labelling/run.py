"""Label an image collection: exactly one Parquet row per image, resumable at any moment.

    manifest in chunks -> those without a label file -> pool of LabelWorker (chunk in, label file out) -> counts

The pool is one of a Ray cluster, or of this machine's processes (`backend`). Only the places of chunks and their counts
pass between processes: images are read next to the network, and label files are
written by the process that made them (see `labels.run_folder` for why nothing is lost or doubled).
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from maskrcnn_core.errors import StorageError
from maskrcnn_core.inference.settings import PredictorSettings, deciding_settings
from pipelines import storage
from pipelines.cluster.choice import uses_ray
from pipelines.images.manifest import (
    Manifest,
    Tasks,
    changes_since,
    discard_manifest,
    draft_manifest,
    one_by_one,
    open_manifest,
    publish_manifest,
)
from pipelines.images.source import Source, open_source
from pipelines.labelling.backend import Backend
from pipelines.labelling.config import LabelRun
from pipelines.labelling.detector import Detector
from pipelines.labelling.footers import checked_files, footers_before
from pipelines.labelling.planning import choose_chunks
from pipelines.labelling.progress import Counts, LabelProgress
from pipelines.labelling.worker_settings import GROUP_SIZE_CPU, WorkerSettings, on_device
from pipelines.labels import run_folder
from pipelines.labels.chunks import NOTHING, FailedImage, LabelFile, Tally, are_readable, labels_folder
from pipelines.labels.run_folder import RunIdentity
from pipelines.storage.checkpoint_copy import describe_checkpoint, load_predictor
from pipelines.storage.object_stores import is_object
from pipelines.storage.s3_settings import applied

if TYPE_CHECKING:
    from maskrcnn_core.data.proposals import ProposalFiles

_READERS_OF_FILES = 16
_READERS_OF_OBJECTS = 64
_LOOKED_AT = 64  # images of a manifest

# Sources of more parts are listed by the cluster; so are S3 prefixes of more than a page, that may have any number.
_MOST_PARTS_HERE = 16


@dataclass(frozen=True)
class LabelSummary:
    """What a labelling run came to.

    Attributes:
        images: of the run; every one has exactly one row.
        statuses: number of images by record status.
        detections: objects in all labels.
        failed: images whose status is not ok.
        failures: the first of them.
        labelled_now: images labelled by this call; the others were done before.
        seconds: of this call.
        images_per_second: of this call without start-up; 0 where nothing was left to do.
        waiting_share: of the detectors' time in this call, how much they stood still for want of images.
        labels: folder of the label files.
        skipped_because_done: the run had been finished before; nothing was done.
    """

    images: int
    statuses: dict[str, int]
    detections: int
    failed: int
    failures: tuple[FailedImage, ...]
    labelled_now: int
    seconds: float
    images_per_second: float
    waiting_share: float
    labels: str
    skipped_because_done: bool


def label(
    run: LabelRun,
    on_progress: Callable[[LabelProgress], None] | None = None,
    *,
    detector: Detector | None = None,
    on_note: Callable[[str], None] = lambda _: None,
) -> LabelSummary:
    """Detect the objects of every image and write one row for each to OUTPUT/labels.

    The same call again continues a run that was interrupted, and does nothing for one that is finished.

    Args:
        run: what to label, with what, where to.
        on_progress: called about once a second while images are labelled, from another thread.
        detector: None = the checkpoints of this project.
        on_note: called with lines that say what the run uses of the cluster, leaves idle, and waits for.

    Raises:
        ConfigError: the cluster cannot hold the workers asked for, or the model cannot do what is asked of it.
        CheckpointError: the checkpoint cannot be used.
        StorageError: there are no images, storage cannot be used, the output holds another run, or an image has no
            proposals.
        AnnotationError: the source of the images is malformed.
    """
    with applied(run.storage):
        return _label(run, on_progress, detector or _own_detector(), on_note, time.monotonic())


def _label(
    run: LabelRun,
    on_progress: Callable[[LabelProgress], None] | None,
    detector: Detector,
    on_note: Callable[[str], None],
    started: float,
) -> LabelSummary:
    with ExitStack() as stack:
        return _label_by(run, on_progress, detector, _backend(run, stack, on_note), started)


def _label_by(
    run: LabelRun,
    on_progress: Callable[[LabelProgress], None] | None,
    detector: Detector,
    backend: Backend,
    started: float,
) -> LabelSummary:
    state = run_folder.state_of(run.output)
    manifest = open_manifest(run_folder.manifest_folder(run.output))
    source = None if manifest is not None else open_source(run.images, run.image_root)
    kind = manifest.kind if manifest is not None else source.kind if source is not None else ""
    settings = _worker_settings(run, kind)
    if state != "finished":
        backend.start_loading(detector, settings)
    code = detector.code()  # while the detector is loaded
    identity = _identity(settings, detector, backend.fingerprint(detector, settings), code)
    if state != "new":
        run_folder.require_same_run(run.output, identity)
    if manifest is not None:
        _require_same_source(run, manifest)
    if state == "finished" and manifest is not None and not _lost_files(run.output, manifest):
        tally = run_folder.finished_tally(run.output)
        if not (run.label.retry_failed and tally.failed):
            return _summary(run.output, tally, tally.images, Counts(), started, finished_before=True)
    if manifest is None:
        assert source is not None
        manifest = _new_manifest(run, source, identity, backend)
    else:
        _check_proposals(run, manifest)
        run_folder.claim_run(run.output, identity)
    if state == "finished":
        run_folder.reopen_run(run.output)
    settings = replace(settings, manifest=manifest, readers=run.label.readers or _fitting_readers(manifest))
    before, counts, known = _label_chunks(run, manifest, settings, detector, backend, on_progress)
    tally, files = checked_files(run.output, manifest, known)
    run_folder.close_run(run.output, tally, files)
    return _summary(run.output, tally, before, counts, started, finished_before=False)


def _backend(run: LabelRun, stack: ExitStack, tell: Callable[[str], None]) -> Backend:
    """Ray where a cluster is named or wanted; both sides are imported when they are needed."""
    if uses_ray(run.cluster):
        from pipelines.labelling.ray_backend import RayBackend

        return RayBackend(run, stack, tell)
    from pipelines.labelling.one_machine import OneMachine

    return stack.enter_context(OneMachine(run, tell))


def _new_manifest(run: LabelRun, source: Source, identity: RunIdentity, backend: Backend) -> Manifest:
    """The manifest of a new run, and the claim on its folder, after all that can be refused has been looked at.

    Whatever ends this early leaves the folder as it was; what another process has made in it stays.
    """
    was_there = storage.exists(run.output)
    folder = run_folder.manifest_folder(run.output)
    draft = None
    try:
        draft = _draft_manifest(source, folder, backend)
        _check_proposals(run, draft)
        backend.num_workers()
        run_folder.claim_run(run.output, identity)
        manifest = publish_manifest(draft)
    except BaseException:
        if draft is not None:
            discard_manifest(draft)
        for emptied in (folder, storage.join(run.output, "_run"), *([] if was_there else [run.output])):
            storage.delete_if_empty(emptied)
        raise
    _require_same_source(run, manifest)
    return manifest


def _draft_manifest(source: Source, folder: str, backend: Backend) -> Manifest:
    """A source of few parts is listed here, so that its mistakes show before a cluster starts."""
    tasks: Tasks = one_by_one
    is_s3_prefix = any(part.keys is not None for part in source.parts)
    if len(source.parts) > (1 if is_s3_prefix else _MOST_PARTS_HERE):
        tasks = backend.tasks()
    return draft_manifest(source, folder, tasks)


def _lost_files(output: str, manifest: Manifest) -> bool:
    """Whether a finished run lacks label files, or has torn ones, which are deleted: they will be labelled again.

    Raises:
        StorageError: a file is whole, but another than when the run was finished.
    """
    plan = run_folder.chunk_plan(output, manifest)
    if plan is None:
        return True
    sizes = run_folder.label_sizes(output)
    done, todo = run_folder.chunks_done(output, manifest, plan, sizes)
    known = run_folder.finished_files(output) or {}
    doubtful = [chunk for chunk in done if chunk.name not in known or sizes[chunk.name] != known[chunk.name].size]
    uris = [chunk.uri(output) for chunk in doubtful]
    torn = {uri for uri, is_whole in zip(uris, are_readable(uris), strict=True) if not is_whole}
    for chunk in doubtful:
        uri = chunk.uri(output)
        if uri in torn:
            storage.delete_file(uri)
        elif chunk.name in known:
            raise StorageError(
                f"output: {uri!r} has {sizes[chunk.name]} bytes, and had {known[chunk.name].size} when the run was "
                "finished; put the former file back, or delete it to label it again"
            )
    return bool(todo or torn)


def _require_same_source(run: LabelRun, manifest: Manifest) -> None:
    images = storage.absolute(run.images)
    root = storage.absolute(run.image_root) if run.image_root is not None else manifest.image_root
    if manifest.image_root and root != manifest.image_root:
        raise StorageError(_moved(run.output, "image_root", manifest.image_root, root))
    if manifest.images != images:
        raise StorageError(_moved(run.output, "images", manifest.images, images))
    difference = changes_since(manifest, images)
    if difference is None or run.label.changed_source == "keep":
        return
    raise StorageError(
        f"images: {difference}; go on with the images as they were listed then: --label.changed_source keep, or "
        "label the new ones with another --output"
    )


def _moved(output: str, name: str, before: str, now: str) -> str:
    """The message about a source that was in another place. Label rows name their images by where they were listed."""
    return (
        f"output: {output!r} holds another run ({name} was {before!r}, now {now!r}); choose another --output; or, "
        "where the same images have moved, make them available at the former place (a link or mount) and repeat the "
        "former command, since the rows name them there"
    )


def _label_chunks(
    run: LabelRun,
    manifest: Manifest,
    settings: WorkerSettings,
    detector: Detector,
    backend: Backend,
    on_progress: Callable[[LabelProgress], None] | None,
) -> tuple[int, Counts, dict[str, LabelFile]]:
    """Labels the chunks that have no file, or failed rows to try again; returns the images that were labelled before,
    the counts of this start, and the files by name."""
    plan = run_folder.chunk_plan(run.output, manifest)
    if plan is None:
        fitted = backend.fitted()
        on_devices = on_device(settings, fitted)
        seconds = detector.seconds_of_image(settings.checkpoint, on_devices.predictor, backend.worker_threads())
        plan = choose_chunks(len(manifest), backend.num_workers(), on_devices.group_size, seconds, fitted)
        plan = run_folder.settle_chunk_plan(run.output, plan, manifest)
    done, todo = run_folder.chunks_done(run.output, manifest, plan)
    footers = footers_before([chunk.uri(run.output) for chunk in done], backend.tasks)
    known = {chunk.name: footer for chunk, footer in zip(done, footers, strict=True)}
    before = sum((footer.tally for footer in footers), NOTHING)
    labelled_before = before.images
    counts = Counts()
    must_retry = run.label.retry_failed and before.failed > 0
    if todo or must_retry:
        settings = on_device(settings, backend.fitted())
    if todo:
        counts, files = backend.label_chunks(detector, settings, todo, before, len(manifest), on_progress)
        known |= files
    if must_retry:
        faulty = [chunk for chunk in done if known[chunk.name].tally.failed]
        again = replace(settings, retry_failed=True)
        retried, files = backend.label_chunks(detector, again, faulty, NOTHING, before.failed, on_progress)
        known |= files
        counts = retried if not todo else counts
        labelled_before -= before.failed
    return labelled_before, counts, known


def _fitting_readers(manifest: Manifest) -> int:
    """How many images a worker reads at once: an object store answers late, and any number of requests alike."""
    places = [manifest.images]
    if manifest.kind in ("coco", "parquet", "csv"):  # which name images anywhere; ids are in no order of places
        places = manifest.read(0, 0, _LOOKED_AT).column("uri").to_pylist()
    return _READERS_OF_OBJECTS if any(is_object(place) for place in places) else _READERS_OF_FILES


def _own_detector() -> Detector:
    return Detector(load_predictor, describe_checkpoint)


def _check_proposals(run: LabelRun, manifest: Manifest) -> None:
    """Make sure that every image has proposals where the run reads them.

    Raises:
        StorageError: they cannot be read, or lack an image.
    """
    if not run.proposals:
        return
    proposals = _proposals_of(run.proposals)
    for table in manifest.tables():
        proposals.require(table.column("image_id").to_pylist(), allow_failed=True)


def _proposals_of(uri: str) -> "ProposalFiles":
    from pipelines.labels.proposals import open_proposals  # brings torch

    return open_proposals(uri, "proposals")


def _worker_settings(run: LabelRun, kind: str) -> WorkerSettings:
    config = run.label
    apply_exif = kind != "coco" if config.exif_orientation == "auto" else config.exif_orientation == "apply"
    return WorkerSettings(  # on a CPU, until the cluster is known: see `on_device`
        checkpoint=storage.absolute(run.checkpoint),
        predictor=PredictorSettings(
            device="cpu",
            precision=config.precision,
            batch_pixels=config.batch_pixels,
            max_pixels=config.max_pixels,
            apply_exif=apply_exif,
            min_score=config.min_score,
            max_detections=config.max_detections,
            test_short_sides=config.test_short_sides,
            test_flip=config.test_flip,
            record=config.record,
            proposals=_proposals_of(run.proposals).fingerprint if run.proposals else "",
        ),
        proposals=storage.absolute_or_empty(run.proposals),
        threads=config.threads_per_worker,
        group_size=GROUP_SIZE_CPU,
        output=storage.absolute(run.output),
        image_timeout=config.image_timeout,
        image_root=storage.absolute_or_empty(run.image_root),
    )


def _identity(settings: WorkerSettings, detector: Detector, fingerprint: str, code: str) -> RunIdentity:
    values = {**deciding_settings(settings.predictor), **detector.settings}
    return RunIdentity(fingerprint, values, code)


def _summary(
    output: str, tally: Tally, images_before: int, counts: Counts, started: float, *, finished_before: bool
) -> LabelSummary:
    return LabelSummary(
        images=tally.images,
        statuses=dict(tally.statuses),
        detections=tally.detections,
        failed=tally.failed,
        failures=tally.failures,
        labelled_now=tally.images - images_before,
        seconds=time.monotonic() - started,
        images_per_second=counts.images_per_second,
        waiting_share=counts.waiting_share,
        labels=labels_folder(output),
        skipped_because_done=finished_before,
    )
