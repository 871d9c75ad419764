"""Which images each step sees, as a pure function: no state to save, so a run resumes anywhere.

Images of one orientation (landscape or portrait) share a batch, so that little of it is padding, as detectron2 and
torchvision's reference scripts do. Each orientation is an endless stream: its images in a new random order, again and
again, cut into batches. Within an epoch the two streams' batches come in a random order. Images that do not fill a
batch at the end of an epoch open the stream's first batch of the next, so that every image is seen equally often.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maskrcnn_core.data.dataset import Sample

_STREAM_ORDER = 1
_EPOCH_ORDER = 2
_AUGMENTATION = 3
_CACHED_ORDERS = 8


def counter_generator(seed: int, purpose: int, first: int, second: int) -> np.random.Generator:
    """Random numbers that depend on the arguments alone (Philox: Salmon et al., SC 2011)."""
    # The generator counts in the low word of its 256-bit counter; the high words select independent sequences.
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, 0, second, first], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


class BatchPlan:
    """Random access to the samples of every step and rank.

    The batch of a step depends on the seed and the step only; ranks cut it into consecutive parts, as equal as can be. So
    any number of workers sees the same global batches.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        *,
        batch_size: int,
        seed: int,
        world_size: int = 1,
        flip_probability: float = 0.5,
        short_sides: Sequence[int] = (800,),
    ) -> None:
        """Divide the images into orientations.

        Args:
            sizes: (height, width) of every image, pixels; position in the sequence is `Sample.index`.
            batch_size: images of a step over all ranks, at least one for each.
            flip_probability: share of mirrored samples.
            short_sides: the resized short side is drawn from these, pixels.

        Raises:
            ValueError: there is no image, no short side, or fewer images in a batch than ranks.
        """
        if not sizes or not short_sides or world_size < 1 or batch_size < world_size:
            raise ValueError(
                "BatchPlan: expected images, short sides and a batch_size of at least world_size (1 or more), got "
                f"{len(sizes)} images, {len(short_sides)} short sides, batch_size {batch_size}, world_size {world_size}"
            )
        self._batch_size, self._world_size, self._seed = batch_size, world_size, seed
        self._flip_probability, self._short_sides = flip_probability, tuple(short_sides)
        self._streams = _orientations(sizes, batch_size)
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def batch(self, step: int, rank: int = 0) -> list[Sample]:
        """The samples of `rank` at `step` (both from 0)."""
        stream, position = self._locate(step)
        return [self._sample(step, slot, self._image(stream, position + slot)) for slot in self.slots(rank)]

    def slots(self, rank: int = 0) -> range:
        """The places of a batch that are `rank`'s."""
        batch_size, world_size = self._batch_size, self._world_size
        return range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)

    def epoch(self, step: int) -> int:
        """The epoch (from 0) that `step` belongs to: the first one whose batches reach beyond it."""
        low, high = 0, (step + 2) * self._batch_size * len(self._streams)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._steps_before(middle + 1) > step else (middle + 1, high)
        return low

    def _locate(self, step: int) -> tuple[int, int]:
        """The stream that feeds `step`, and the position in it of the batch's first image."""
        epoch = self.epoch(step)
        labels = np.concatenate(
            [
                np.full(self._batches_before(stream, epoch + 1) - self._batches_before(stream, epoch), stream)
                for stream in range(len(self._streams))
            ]
        )
        order = counter_generator(self._seed, _EPOCH_ORDER, epoch, 0).permutation(labels)
        place = step - self._steps_before(epoch)
        stream = int(order[place])
        earlier = self._batches_before(stream, epoch) + int(np.count_nonzero(order[:place] == stream))
        return stream, earlier * self._batch_size

    def _batches_before(self, stream: int, epoch: int) -> int:
        return epoch * len(self._streams[stream]) // self._batch_size

    def _steps_before(self, epoch: int) -> int:
        return sum(self._batches_before(stream, epoch) for stream in range(len(self._streams)))

    def _image(self, stream: int, position: int) -> int:
        cycle, offset = divmod(position, len(self._streams[stream]))
        order = self._orders.get((stream, cycle))
        if order is None:
            generator = counter_generator(self._seed, _STREAM_ORDER, stream, cycle)
            order = generator.permutation(self._streams[stream])
            while len(self._orders) >= _CACHED_ORDERS:
                self._orders.pop(next(iter(self._orders)))
            self._orders[stream, cycle] = order
        return int(order[offset])

    def _sample(self, step: int, slot: int, index: int) -> Sample:
        generator = counter_generator(self._seed, _AUGMENTATION, step, slot)
        flip = bool(generator.random() < self._flip_probability)
        short_side = self._short_sides[int(generator.integers(len(self._short_sides)))]
        return Sample(index=index, flip=flip, short_side=short_side)


def _orientations(sizes: Sequence[tuple[int, int]], batch_size: int) -> list[NDArray[np.int64]]:
    """Image positions by orientation; in one group where an orientation cannot fill a batch without repeating."""
    portrait = np.array([height > width for height, width in sizes])
    groups = [np.flatnonzero(~portrait), np.flatnonzero(portrait)]
    if min(len(group) for group in groups) < batch_size:
        return [np.arange(len(sizes))]
    return groups
