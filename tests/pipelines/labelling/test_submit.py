"""`ray job submit` of a labelling run to a head that asks for a token, with checkpoint, images and labels on S3."""

from pathlib import Path

import pytest

from maskrcnn_core.data.generated.pictures import generate_dataset
from pipelines.benchmarks.chaos import small_checkpoint
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify
from tests.pipelines.submission import TOKEN, copy_code, submit, upload

pytestmark = [pytest.mark.ray, pytest.mark.slow]  # a head with its dashboard, and two submissions: some minute


def test_a_submitted_labelling_reads_and_writes_s3(head: str, bucket: str, tmp_path: Path) -> None:
    generate_dataset(tmp_path / "set", num_images=6, image_size=(64, 96))
    upload(tmp_path / "set" / "images", f"{bucket}/images")
    upload(small_checkpoint(tmp_path / "small"), f"{bucket}/checkpoint")
    work = tmp_path / "work"
    work.mkdir()
    copy_code(work)
    command = ["-m", "jobs.label", "--checkpoint", f"{bucket}/checkpoint", "--images", f"{bucket}/images"]
    command += ["--output", f"{bucket}/labelled"]
    refused = submit(head, work, None, *command)
    assert refused.returncode != 0
    assert "401" in refused.stdout + refused.stderr or "nauthorized" in refused.stdout + refused.stderr
    submitted = submit(head, work, TOKEN, *command)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "finished: 6 images (6 ok)" in submitted.stdout
    assert "computing on CPUs: the Ray cluster has no GPU" in submitted.stdout  # and not on one machine without it
    verified = verify(VerifyRun(labels=f"{bucket}/labelled"))
    assert verified.passed
    assert verified.rows == 6
    again = submit(head, work, TOKEN, *command)
    assert again.returncode == 0
    assert "already finished: 6 images" in again.stdout
