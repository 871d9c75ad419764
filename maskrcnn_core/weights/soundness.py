"""Whether tensors can be weights: plain floating-point numbers, all of them finite.

A network with one weight that is not finite finds nothing in any image, without a word; so such weights are refused
where they come in.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.printable import printable


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Make sure that all floating-point values are numbers.

    Args:
        tensors: by name; those of other kinds, and those without values (meta), are passed over.
        where: for messages, such as the file.

    Raises:
        CheckpointError: one holds NaN or an infinity; named, with how many.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.is_meta or _is_finite(tensor):
            continue
        wrong = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{where}: {printable(name)} holds {wrong} values of {tensor.numel()} that are no finite numbers (NaN or "
            "infinity); its training has failed, or the file is damaged: take an earlier checkpoint"
        )


def check_floating(tensors: Mapping[str, Tensor], where: str) -> None:
    """Make sure that all are plain tensors of floating-point numbers.

    Raises:
        CheckpointError: one is of whole numbers, truth values, complex, sparse or quantised; named.
    """
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and not tensor.is_quantized
        if not plain or not tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.") if plain else "sparse or quantised"
            raise CheckpointError(
                f"{where}: {printable(name)} is a tensor of kind {dtype}, expected floating-point numbers"
            )


def _is_finite(tensor: Tensor) -> bool:
    """A sum is finite only if all of it is; one that overflows is looked at value by value."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
