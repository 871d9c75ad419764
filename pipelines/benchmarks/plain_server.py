"""The peer of the serving benchmark: torchvision's detector behind FastAPI, as the tutorials of both have it."""

import io
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from pipelines.benchmarks.peer import peer_model

_THRESHOLD = 0.5


def serve_plainly(port: int, short_side: int, long_side: int, max_detections: int, threads: int, device: str) -> None:
    """Serve until the process is ended.

    Args:
        port: of 127.0.0.1.
        short_side, long_side, max_detections: as `peer_model` takes them.
        threads: of torch.
        device: of torch.
    """
    torch.set_num_threads(threads)
    model = peer_model(short_side, long_side, box_detections_per_img=max_detections).to(device)
    app = FastAPI()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.post("/predict")
    async def predict(request: Request) -> list[dict[str, Any]]:
        image = np.asarray(Image.open(io.BytesIO(await request.body())).convert("RGB"))
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float().div(255).to(device)
        with torch.inference_mode():
            (found,) = model([pixels])
        return _results({name: value.cpu() for name, value in found.items()})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def _results(found: dict[str, Tensor]) -> list[dict[str, Any]]:
    """COCO's results, masks as run lengths."""
    masks = (found["masks"][:, 0] > _THRESHOLD).numpy().astype(np.uint8)
    results = []
    for box, score, label, mask in zip(found["boxes"].tolist(), found["scores"], found["labels"], masks, strict=True):
        x1, y1, x2, y2 = box
        rle = coco_mask.encode(np.asfortranarray(mask))
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
        results.append(
            {
                "category_id": int(label),
                "score": float(score),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": segmentation,
            }
        )
    return results
