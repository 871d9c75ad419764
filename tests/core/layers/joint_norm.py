"""What each of two processes computes for `test_trained_norm`; a module of its own, so that they start fast."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from maskrcnn_core.layers.trained_norm import WorkersBatchNorm2d

IMAGES = torch.randn(4, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def norm_of(images: Tensor) -> tuple[WorkersBatchNorm2d, Tensor]:
    """A norm with a scale and shift of its own, and images with a gradient."""
    norm = WorkersBatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    return norm, images.clone().requires_grad_()


def loss_of(output: Tensor, places: Tensor) -> Tensor:
    """Something whose gradient differs at every place."""
    return (output.square() * places).sum()


def shares(images: Tensor) -> tuple[Tensor, Tensor]:
    """One image for the first worker, three for the second, of which only the upper half: unequal number and size."""
    return images[:1], images[1:, :, :32]


def one_of_two(rank: int, folder: str) -> None:
    """A step of a norm, and what it gives afterwards in evaluation mode, to FOLDER/RANK.pt."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    norm, x = norm_of(shares(IMAGES)[rank])
    output = norm(x)
    loss_of(output, shares(IMAGES.roll(1))[rank]).backward()
    norm.eval()
    assert norm.weight is not None
    found = {
        "output": output.detach(),
        "x": x.grad,
        "weight_grad": norm.weight.grad,
        "bias_grad": norm.bias.grad,
        "later": norm(x).detach(),
        **norm.state_dict(),
    }
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()
