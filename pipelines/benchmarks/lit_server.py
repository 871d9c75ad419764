"""A peer of the serving benchmark: torchvision's detector behind LitServe, as its documentation has such a class.

LitServe is no dependency: the benchmark asks it where it is installed.
"""

import importlib
import importlib.util
import io
from typing import Any

import numpy as np
import torch
from fastapi import Request
from PIL import Image

from pipelines.benchmarks.peer import peer_model
from pipelines.benchmarks.plain_server import coco_results

_BATCH, _BATCH_SECONDS = 4, 0.02


def is_installed() -> bool:
    """Whether there is a LitServe to ask."""
    return importlib.util.find_spec("litserve") is not None


def serve_lit(port: int, short_side: int, long_side: int, max_detections: int, threads: int, device: str) -> None:
    """Serve until the process group is ended; arguments as of `serve_plainly`."""
    litserve: Any = importlib.import_module("litserve")

    class Api(litserve.LitAPI):  # type: ignore[misc]
        """Bytes of an image in, COCO's results out; images of several requests at once."""

        def setup(self, _: str) -> None:
            torch.set_num_threads(threads)
            self.model = peer_model(short_side, long_side, box_detections_per_img=max_detections).to(device)

        async def decode_request(self, request: Request) -> torch.Tensor:
            image = np.asarray(Image.open(io.BytesIO(await request.body())).convert("RGB"))
            return torch.from_numpy(image.copy()).permute(2, 0, 1).float().div(255)

        def batch(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
            return inputs

        def predict(self, x: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            with torch.inference_mode():
                found: list[dict[str, torch.Tensor]] = self.model([pixels.to(device) for pixels in x])
            return found

        def unbatch(self, output: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
            return output

        def encode_response(self, output: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
            return coco_results({name: value.cpu() for name, value in output.items()})

    api = Api(max_batch_size=_BATCH, batch_timeout=_BATCH_SECONDS, api_path="/predict")
    server = litserve.LitServer(api, accelerator="cpu" if device == "cpu" else "cuda", timeout=600)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
