"""The commands that jobs print under "next:" and "use:" run as they are printed."""

import json
import shlex
from pathlib import Path

import pytest

from jobs import evaluate, export, label, report, verify
from jobs.cli import parse_run
from maskrcnn_core.export.formats import FormatName
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.run import LabelSummary
from pipelines.training.config import TrainRun
from pipelines.verification.run import VerificationSummary  # noqa: F401 (the job's own import, made once)
from tests.generated_labels import CATEGORIES, failed_record, random_record, write_run

JOBS = {"evaluate": evaluate.main, "verify": verify.main, "report": report.main, "export": export.main}


def run(command: str) -> int:
    python, flag, name, *arguments = shlex.split(command)
    assert (python, flag) == ("python", "-m")
    return JOBS[name.removeprefix("jobs.")](arguments)


def annotations(folder: Path, rows: list[dict[str, object]]) -> str:
    images = [
        {"id": row["image_id"], "file_name": row["uri"], "width": row["width"], "height": row["height"]}
        for row in rows
        if row["status"] == "ok"
    ]
    categories = [{"id": one.id, "name": one.name} for one in CATEGORIES]
    first = images[0]
    box = {"id": 1, "image_id": first["id"], "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    path = folder / "val set.json"
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": [box]}))
    return str(path)


@pytest.mark.parametrize("from_json", [False, True])
def test_after_labelling(from_json: bool, tmp_path: Path) -> None:
    output = tmp_path / "my run"
    rows = write_run(output, [random_record(seed) for seed in range(4)] + [failed_record()])
    images = annotations(tmp_path, rows) if from_json else "/somewhere/pictures"
    settings = LabelRun("model", images, str(output))
    fields = dict.fromkeys(LabelSummary.__dataclass_fields__, 0)
    summary = LabelSummary(**{**fields, "labels": "x", "statuses": {"ok": 4}, "failures": ()})  # type: ignore[arg-type]
    lines = label.summary_lines(settings, summary)
    commands = [line.strip() for line in lines[lines.index("next:") + 1 :]]
    assert len(commands) == 2 + from_json
    assert not any("ANNOTATIONS" in command for command in commands)
    for command in commands:
        assert run(command) == 0 or "verify" in command  # these rows were made up, not labelled
    proposals = LabelRun("model", images, str(output), label=LabelConfig(record="proposals"))
    assert not any("jobs.report" in line for line in label.summary_lines(proposals, summary))


@pytest.mark.parametrize("format", ["coco", "coco_dataset"])
def test_after_an_export(format: FormatName, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_run(tmp_path / "run", [random_record(seed) for seed in range(4)])
    output = str(tmp_path / "my labels.json")
    assert export.main(["--labels", str(tmp_path / "run"), "--format", format, "--output", output]) == 0
    use = capsys.readouterr().out.splitlines()[-1]
    command = next(part for part in use.removeprefix("use: ").split("; ") if part.startswith("python -m"))
    if format == "coco":
        truth = annotations(tmp_path, rows)
        assert run(command.replace("ANNOTATIONS.json", shlex.quote(truth))) == 0
        assert "other" in use
    else:
        arguments = shlex.split(command)[3:]
        settings = parse_run(TrainRun, prog="train", argv=arguments)
        assert (settings.data.train.annotations, settings.data.train.images) == (output, "/data/pictures")


def test_fiftyone_is_told_where_the_list_of_images_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", [random_record(seed) for seed in range(4)])
    output = str(tmp_path / "fo")
    assert export.main(["--labels", str(tmp_path / "run"), "--format", "fiftyone", "--output", output]) == 0
    use = capsys.readouterr().out.splitlines()[-1].removeprefix("use: ")
    (place,) = [part for part in use.split(", ") if part.startswith("data_path=")]
    assert (tmp_path / "fo" / place.split("=")[1].strip('"')).is_file()
    compile(use, "use", "eval")
