"""What one step learns from, on the host and on the device. Loader processes import this, and no more than it needs."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import torch

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.dataset import TrainingItem, collate, collate_proposals
from maskrcnn_core.data.packed_inputs import PackedInputs
from maskrcnn_core.structures import ImageBatch, Proposals, Targets

_Images = TypeVar("_Images", PackedInputs, ImageBatch)


class Batch(NamedTuple, Generic[_Images]):
    """What one step learns from: packed on the host, padded on the device. The proposals are None where an RPN makes
    them."""

    images: _Images
    targets: Targets
    image_ids: Sequence[int]
    proposals: Proposals | None


def packed_batch(items: Sequence[TrainingItem], *, rule: InputConfig, dtype: torch.dtype) -> Batch[PackedInputs]:
    """`collate` with proposals, where the items have some."""
    return Batch(*collate(items, rule, dtype), collate_proposals(items))
