"""What is damaged, and what reads it: each target makes a case from a number, runs it, and says what came."""

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs import convert, evaluate, export, report, verify
from maskrcnn_core.data.coco.conversion import Reader
from maskrcnn_core.data.coco.dataset import CocoDataset, dataset_of, load_coco
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.targets import object_targets
from maskrcnn_core.errors import ImageError, UserError
from maskrcnn_core.export.formats import FORMATS
from maskrcnn_core.weights.checkpoint import load_checkpoint
from pipelines.annotations.columns import annotation_columns
from pipelines.training.data_summary import summarize
from tests.fuzz.damage import damaged_bytes, damaged_json, damaged_png
from tests.fuzz.damaged_table import damage_table
from tests.fuzz.isolation import held_output
from tests.fuzz.labelling_here import label_here
from tests.fuzz.sound import SoundInputs

Verdict = tuple[str, str]
Target = Callable[[SoundInputs, random.Random, Path], Verdict]


def run_target(name: str, sound: SoundInputs, case: int) -> Verdict:
    """One case, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        return TARGETS[name](sound, random.Random(f"{name} {case}"), Path(folder))


# ---- annotations and results -----------------------------------------------------------------------------------------


def _training(sound: SoundInputs, random_: random.Random, folder: Path) -> Verdict:
    """Annotations as training reads them: checked, summed up, and every object made a target."""
    path = folder / "annotations.json"
    path.write_bytes(damaged_json(sound.annotations, random_))
    return _targets(lambda: load_coco(str(path), require_masks=random_.random() < 0.7, on_fault="drop"), random_)


def _shards(sound: SoundInputs, random_: random.Random, folder: Path) -> Verdict:
    """The same as a folder of shards, for training and scoring."""
    shards = folder / "shards"
    shutil.copytree(sound.shards, shards)
    path = random_.choice(sorted(path for path in shards.rglob("*") if path.is_file()))
    if random_.random() < 0.2:
        path.write_bytes(damaged_bytes(path.read_bytes(), random_))
    elif path.suffix == ".json":
        path.write_bytes(damaged_json(json.loads(path.read_bytes()), random_))
    else:
        damage_table(path, random_)
    if random_.random() < 0.5:
        labels = folder / "results.json"
        labels.write_text(json.dumps(sound.results))
        return _job(evaluate.main, ["--labels", labels, "--annotations", shards, *_scoring_options(random_)])
    return _targets(lambda: dataset_of(annotation_columns(str(shards), Reader()), require_masks=False), random_)


def _targets(load: Callable[[], CocoDataset], random_: random.Random) -> Verdict:
    try:
        dataset = load()
        summarize(dataset)
    except UserError as error:
        return _one_line(str(error))
    for image in dataset.images:
        object_targets(
            image,
            dataset.label_of,
            input_size=(64, 96),
            flip=random_.random() < 0.5,
            mask_size=random_.choice((112, 0, None)),
            keypoint_names=dataset.keypoint_names,
        )
    return ("counted drop", "; ".join(dataset.faults.lines())) if dataset.faults else ("ok", "")


def _scoring(sound: SoundInputs, random_: random.Random, folder: Path) -> Verdict:
    """Annotations as scoring reads them."""
    path = folder / "annotations.json"
    if random_.random() < 0.5:
        path.write_bytes(damaged_json(sound.annotations, random_))
        labels = folder / "results.json"
        labels.write_text(json.dumps(sound.results))
    else:
        path.write_bytes(damaged_json(json.loads(sound.truth.read_text()), random_))
        labels = sound.labels
    return _job(evaluate.main, ["--labels", labels, "--annotations", path, *_scoring_options(random_)])


def _results(sound: SoundInputs, random_: random.Random, folder: Path) -> Verdict:
    """Results of another system."""
    path = folder / "annotations.json"
    path.write_text(json.dumps(sound.annotations))
    labels = folder / "results.json"
    labels.write_bytes(damaged_json(sound.results, random_))
    return _job(evaluate.main, ["--labels", labels, "--annotations", path, *_scoring_options(random_)])


def _scoring_options(random_: random.Random) -> list[str]:
    options = ["--evaluate.engine", random_.choice(("hotcoco", "pycocotools"))]
    if random_.random() < 0.3:
        options += ["--evaluate.details", "true", "--evaluate.bootstrap_samples", "3"]
    return options


# ---- label files and run folders -------------------------------------------------------------------------------------


def _rows(sound: SoundInputs, random_: random.Random, folder: Path) -> Verdict:
    """Label files with damaged rows, columns, types, metadata or bytes, read by every job that reads labels."""
    run = folder / "run"
    shutil.copytree(sound.labels, run)
    path = random_.choice(sorted((run / "labels").iterdir()))
    if random_.random() < 0.3:
        path.write_bytes(damaged_bytes(path.read_bytes(), random_))
    else:
        damage_table(path, random_)
    return _reader_of_labels(sound, random_, folder, run)


def _reader_of_labels(sound: SoundInputs, random_: random.Random, folder: Path, run: Path) -> Verdict:
    what = random_.choice(("evaluate", "verify", "report", "export", "export"))
    if what == "verify":
        return _job(verify.main, ["--labels", run])
    if what == "report":
        return _job(report.main, ["--labels", run, "--output", folder / "page"])
    if what == "evaluate":
        return _job(evaluate.main, ["--labels", run, "--annotations", sound.truth, *_scoring_options(random_)])
    form = random_.choice(FORMATS)
    options = ["--export.polygons", "true"] if random_.random() < 0.3 else []
    output = folder / "place" / "below" / "out"
    verdict = _job(export.main, ["--labels", run, "--format", form, "--output", output, *options])
    outside = [path for path in (folder / "place").rglob("*") if path.is_file() and not _is_within(path, output)]
    return ("!outside", f"{outside}") if outside else verdict


def _is_within(path: Path, output: Path) -> bool:
    """A file of the export; one beside it may carry its name and an ending."""
    return path.is_relative_to(output) or (path.parent == output.parent and path.name.startswith(output.name))


def _run_folder(sound: SoundInputs, random_: random.Random, folder: Path) -> Verdict:
    """Files of a run damaged or gone; then the run is verified, or started again."""
    run = folder / "run"
    shutil.copytree(sound.folder / "labelled", run)
    is_verified = random_.random() < 0.5
    for _ in range(random_.choice((1, 1, 2))):
        _damage_file(random_.choice(sorted(path for path in run.rglob("*") if path.is_file())), random_, is_verified)
    return _job(verify.main, ["--labels", run]) if is_verified else _start_again(sound, run)


def _damage_file(path: Path, random_: random.Random, is_verified: bool) -> None:
    """Any damage; to label files that nobody verifies, only what their size shows: they are not read on a start."""
    content = path.read_bytes()
    what = random_.random()
    if what < 0.15:
        path.unlink()
    elif path.parent.name == "labels":
        path.write_bytes(damaged_bytes(content, random_) if is_verified else content[: random_.randrange(len(content))])
    elif what < 0.5 and path.suffix != ".parquet":
        half = content[: len(content) // 2]
        path.write_bytes(random_.choice((b"", b"[]", b"{}", b"null", b"0", bytes(len(content)), half)))
    elif what < 0.75 and path.suffix != ".parquet":
        path.write_bytes(damaged_json(_parsed(content), random_))
    else:
        path.write_bytes(damaged_bytes(content, random_))


def _parsed(content: bytes) -> Any:
    """JSON that another damage may have reached before."""
    try:
        return json.loads(content)
    except ValueError:
        return {}


def _start_again(sound: SoundInputs, run: Path) -> Verdict:
    """The same command again: a refusal in one line, or a run as an undisturbed one."""
    try:
        summary = label_here(sound.folder / "pictures", run)
    except UserError as error:
        return _one_line(str(error))
    rows = pa.concat_tables([pq.read_table(path) for path in sorted((run / "labels").glob("*.parquet"))])
    if not rows.sort_by("image_id").equals(sound.labelled):
        return "!other labels", f"{summary}"
    return ("ok" if summary.skipped_because_done else "labelled again"), ""


# ---- images ----------------------------------------------------------------------------------------------------------


def _image(sound: SoundInputs, random_: random.Random, folder: Path) -> Verdict:
    """An encoded image."""
    name = random_.choice(list(sound.pictures))
    content = sound.pictures[name]
    is_png = content.startswith(b"\x89PNG")
    content = damaged_png(content, random_) if is_png and random_.random() < 0.6 else damaged_bytes(content, random_)
    try:
        pixels = decode_image(content, max_pixels=10_000_000, apply_exif=random_.random() < 0.5)
    except ImageError as error:
        verdict, text = _one_line(str(error))
        return (error.status, text) if verdict == "one line" else (verdict, text)
    assert (pixels.dtype, len(pixels)) == (torch.uint8, 3)
    return "ok", name


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def _checkpoint(sound: SoundInputs, random_: random.Random, folder: Path) -> Verdict:
    """A checkpoint folder of ours."""
    checkpoint = folder / "checkpoint"
    shutil.copytree(sound.checkpoint, checkpoint)
    path = checkpoint / random_.choice(("config.json", "config.json", "model.safetensors"))
    content = path.read_bytes()
    if path.suffix == ".json":
        path.write_bytes(damaged_json(json.loads(content), random_))
    elif random_.random() < 0.6:  # the header is a small part of the file
        (length,) = np.frombuffer(content[:8], np.uint64).tolist()
        head = damaged_bytes(content[: 8 + length], random_)
        path.write_bytes(head + content[8 + length :])
    else:
        path.write_bytes(damaged_bytes(content, random_))
    try:
        load_checkpoint(str(checkpoint))
    except UserError as error:
        return _one_line(str(error))
    return "ok", ""


def _foreign(sound: SoundInputs, random_: random.Random, folder: Path) -> Verdict:
    """Weights of another framework."""
    damaged = random_.choice(sound.foreign)
    for file in sound.foreign:
        content = file.read_bytes()
        if file == damaged and file.suffix == ".json" and random_.random() < 0.5:
            content = damaged_json(json.loads(content), random_)
        elif file == damaged:
            content = damaged_bytes(content, random_)
        (folder / file.name).write_bytes(content)
    sources = {".bin": "manifest.json", ".prototxt": "net.caffemodel"}
    source = folder / sources.get(damaged.suffix, damaged.name)
    return _job(convert.main, ["--source", source, "--output", folder / "converted"])


# ---- verdicts --------------------------------------------------------------------------------------------------------


def _job(main: Callable[[list[str]], int], arguments: list[Any]) -> Verdict:
    """Runs a job in this process and reads what it printed as a user would."""
    with held_output() as printed:
        code = main([str(argument) for argument in arguments])
        out, err = printed()
    if code == 2:
        return _one_line(err.removesuffix("\n"), before="error: ")
    if err:
        return "!noise", err
    if code == 1 and main is verify.main:
        return "offences", out
    if code != 0:
        return f"!exit {code}", out
    return ("counted drop" if "left out" in out or "dropped" in out else "ok"), out


def _one_line(text: str, before: str = "") -> Verdict:
    """A message is one line, of a length that can be read, that no terminal obeys."""
    text = text.removeprefix(before) if text.startswith(before) else f"!{text}"
    is_fit = text.strip() and not text.startswith("!") and len(text) < 3000 and "Traceback" not in text
    shown = text if before else " ".join(text.split())  # an exception's text is folded where it is printed
    return ("one line" if is_fit and "\n" not in shown else "!message"), text


TARGETS: Mapping[str, Target] = {
    "training": _training,
    "scoring": _scoring,
    "shards": _shards,
    "results": _results,
    "rows": _rows,
    "run folder": _run_folder,
    "image": _image,
    "checkpoint": _checkpoint,
    "foreign": _foreign,
}
