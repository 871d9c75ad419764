"""`ray job submit` of a training to a head that asks for a token, with data, checkpoints and logs on S3."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from pipelines import storage
from pipelines.training.checkpoint_store import list_checkpoints
from pipelines.training.sample_log import read_samples
from tests.pipelines.submission import TOKEN, copy_code, submit, upload
from tests.pipelines.training.test_run import IMAGES, SMALL, small_run, write_data

_STEPS = 6
_COMMAND = ("-m", "jobs.train", "--config", "run.yaml")


def working_directory(folder: Path, uri: str) -> Path:
    """What a user submits: the code, and settings."""
    copy_code(folder)
    run = small_run(Path("unused"), write_data(folder.parent / "data"), steps=_STEPS, validate_every=0, pictures=1)
    upload(folder.parent / "data", f"{uri}/data")
    source = {"images": f"{uri}/data/images", "annotations": f"{uri}/data/instances.json"}
    settings = {
        "output": f"{uri}/run",
        "model": asdict(SMALL),
        "data": {"train": source, "val": source},
        "train": asdict(run.train),
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(settings))))
    return folder


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(2400)
def test_a_submitted_training_leaves_everything_on_s3(head: str, bucket: str, tmp_path: Path) -> None:
    folder = working_directory(tmp_path / "work", bucket)
    refused = submit(head, folder, None, *_COMMAND)
    assert refused.returncode != 0
    assert "401" in refused.stdout + refused.stderr or "nauthorized" in refused.stdout + refused.stderr

    submitted = submit(head, folder, TOKEN, *_COMMAND)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert f"finished: {_STEPS} steps" in submitted.stdout
    output = f"{bucket}/run"
    for name in ("checkpoints/last/model.safetensors", "checkpoints/last/config.json", "summary.json", "data.json"):
        assert storage.exists(f"{output}/{name}"), name
    assert [stored.step for stored in list_checkpoints(f"{output}/resume")] == [_STEPS, _STEPS - 3]
    assert [uri for uri in storage.list_files(f"{output}/tensorboard") if "events.out.tfevents" in uri]
    assert sorted(read_samples(output)) == list(range(_STEPS))
    assert all(1 <= image <= IMAGES for images in read_samples(output).values() for image in images)

    again = submit(head, folder, TOKEN, *_COMMAND)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"already finished: {_STEPS} steps" in again.stdout
