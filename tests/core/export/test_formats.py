"""A format is a file and a word in the list: command line, help and pipeline know it by these two."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maskrcnn_core.export.formats import FORMATS, ExportFormat, FormatName, format_meanings, load_format
from tests.architecture import PACKAGES, REPOSITORY
from tests.generated_labels import random_record, write_run

NAMES_ONLY = '''"""Names alone: a line for each object."""

from collections.abc import Iterator

from maskrcnn_core.export.formats import ExportFormat, Written
from maskrcnn_core.export.source import ExportFile, ExportStyle, LabelSource


def names_files(source: LabelSource, style: ExportStyle) -> Iterator[ExportFile]:
    del style
    names = (f"{one.category}\\n" for labelled in source.labelled() for one in labelled.objects)
    yield ExportFile("", names)


def _use(written: Written) -> str:
    return f"sort {written.files[0]}"


FORMAT = ExportFormat(names_files, _use, keeps_empty=True, draws="never")
'''


@pytest.mark.parametrize("name", FORMATS)
def test_every_file_declares_its_format(name: FormatName) -> None:
    assert isinstance(load_format(name), ExportFormat)
    assert 20 < len(format_meanings()[name]) < 150


def test_a_file_and_a_word_make_a_format(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    export = tmp_path / "maskrcnn_core" / "export"
    (export / "names_only.py").write_text(NAMES_ONLY)
    formats = (export / "formats.py").read_text()
    (export / "formats.py").write_text(formats.replace('Literal["coco", ', 'Literal["coco", "names_only", '))
    rows = write_run(tmp_path / "run", [random_record(seed) for seed in range(6)])

    def job(*arguments: str) -> str:
        command = [sys.executable, "-m", "jobs.export", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    help_ = " ".join(job("--help").split())
    assert "--format {coco,names_only,coco_dataset," in help_
    assert "names_only = Names alone: a line for each object;" in help_
    said = job("--labels", "run", "--format", "names_only", "--output", "names.txt").splitlines()
    assert said[-1] == "use: sort names.txt"
    expected = [found["category"] for row in rows for found in row["detections"]]
    assert (tmp_path / "names.txt").read_text().splitlines() == expected
