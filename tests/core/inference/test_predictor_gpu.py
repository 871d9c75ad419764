"""On a CUDA device: what is copied has arrived, prepared images are those of the host, and doing everything at the same
time gives the records of one thing after the other."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from maskrcnn_core.inference.device_preparation import DevicePreparation, pack_images
from maskrcnn_core.structures import Proposals
from tests.core.inference.test_batch_stream import AT_ONCE, CONTENTS, assert_close
from tests.core.inference.test_device_preparation import IMAGES, RULE, assert_same, input_sizes, on_host
from tests.core.inference.test_predictor_device import PLAIN, predictor_of

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def test_what_is_copied_to_the_host_has_arrived() -> None:
    boxes = torch.zeros(1, 1_000_000, 4, device="cuda")
    for step in range(5):
        torch.cuda._sleep(50_000_000)
        boxes = boxes + 1
        found = Proposals(boxes, boxes[..., 0], torch.tensor([7], device="cuda")).to("cpu")
        assert (found.boxes == step + 1).all()
        assert int(found.count[0]) == 7


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_are_prepared_as_on_the_host_without_waiting(dtype: torch.dtype) -> None:
    sides = (48, 64)
    packed = pack_images(IMAGES, [input_sizes(image, *sides) for image in IMAGES], pinned=True)
    preparation = DevicePreparation(RULE, torch.device("cuda"), dtype)
    preparation.batches(packed)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        found = preparation.batches(packed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for view, images in enumerate(found):
        # Coordinates rounded otherwise move a value by 1e-6 of the step between two neighbours, here noise.
        assert_same(images.to("cpu"), on_host(IMAGES, view, sides), 1e-4 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("views", [{}, {"test_short_sides": (48, 64), "test_flip": True, "batch_pixels": 80_000}])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_stages_at_once_give_the_records_of_one_after_the_other(precision: str, views: dict[str, Any]) -> None:
    on_gpu: dict[str, Any] = {
        "device": "cuda",
        "precision": precision,
        "device_masks": True,
        "device_preparation": True,
        **views,
    }
    expected = predictor_of(replace(PLAIN, **on_gpu)).predict(CONTENTS)
    assert {record.status for record in expected} == {"ok", "unreadable", "missing"}
    at_once = predictor_of(replace(AT_ONCE, **on_gpu))
    for _ in range(5):
        assert_close(at_once.predict(CONTENTS), expected)
