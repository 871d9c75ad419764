"""Weights rounded once give what autocast gives."""

import torch
from torch import nn

from maskrcnn_core.layers.frozen_norm import fold
from maskrcnn_core.layers.half_weights import round_large_weights
from maskrcnn_core.structures import Detections, ImageBatch
from tests.core.model.test_detector import build


@torch.inference_mode()
def test_results_are_autocasts_own() -> None:
    torch.manual_seed(0)
    detector = build().eval()
    fold(detector)
    images = ImageBatch(torch.randn(1, 3, 64, 96), torch.tensor([[64, 96]]), torch.tensor([[64, 96]]))

    def detect() -> Detections:
        with torch.autocast("cpu", torch.bfloat16):
            return detector.detect(images)

    expected = detect()
    round_large_weights(detector, torch.bfloat16)
    found = detect()
    assert {module.weight.dtype for module in detector.modules() if isinstance(module, nn.Conv2d)} >= {torch.bfloat16}
    assert int(found.count[0]) > 0
    for name in ("boxes", "scores", "labels", "masks"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
