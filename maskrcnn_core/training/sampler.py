"""Which images each step sees, as a pure function: no state to save, so a run resumes anywhere.

Images of one group of aspect ratios (landscape and portrait, or finer ones) share a batch, so that little of it is
padding, as detectron2 and torchvision's reference scripts do. Each group is an endless stream: its images in a new
random order, again and again, cut into batches. Within an epoch the streams' batches come in a random order. Images
that do not fill a batch at the end of an epoch open the stream's first batch of the next, so that every image is seen
equally often, or as often as its repeat factor says.

An image with repeat factor r is shown floor((c + 1) r + u) - floor(c r + u) times in cycle c of its stream, where u is
its own random phase: r times on average, never more than one off, and known for any cycle without those before.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maskrcnn_core.data.dataset import Sample

_STREAM_ORDER = 1
_EPOCH_ORDER = 2
_AUGMENTATION = 3
_PHASE = 4
_PARTNER = 5
_SEED = 6
_SHORT_SIDE = 7
_CACHED_IMAGES = 1 << 24
"""In the orders of streams that are kept, 4 bytes each; the one in use is always kept."""
_CACHED_TOTALS = 64


def counter_generator(seed: int, purpose: int, first: int, second: int) -> np.random.Generator:
    """Random numbers that depend on the arguments alone (Philox: Salmon et al., SC 2011)."""
    # The generator counts in the low word of its 256-bit counter; the high words select independent sequences.
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, 0, second, first], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def slots_of(rank: int, world_size: int, batch_size: int) -> range:
    """The slots of a batch that are `rank`'s: consecutive, and as equal a share as can be."""
    return range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


class BatchPlan:
    """Random access to the samples of every step and rank.

    The batch of a step depends on the seed and the step only; ranks cut it into consecutive parts, as equal as can be.
    So any number of workers sees the same global batches.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]] | NDArray[np.int32],
        *,
        batch_size: int,
        seed: int,
        world_size: int = 1,
        flip_probability: float = 0.5,
        short_sides: Sequence[int] = (800,),
        steps_per_size: int = 0,
        aspect_ratio_factor: int = 0,
        repeat_factors: Sequence[float] | NDArray[np.float64] | None = None,
        partner_probability: float = 0.0,
    ) -> None:
        """Divide the images into groups.

        Args:
            sizes: (height, width) of every image, pixels, [images, 2]; the position is `Sample.index`.
            batch_size: images of a step over all ranks, at least one for each.
            flip_probability: share of mirrored samples.
            short_sides: the resized short side is drawn from these, pixels.
            steps_per_size: steps in a row of which all images have one short side; 0 = each image has its own.
            aspect_ratio_factor: k, see `aspect_groups`.
            repeat_factors: how often each image is shown in an epoch, at least 1; None = once.
            partner_probability: share of samples that get a second image, any of the data set, to paste from.

        Raises:
            ValueError: there is no image, no short side, or fewer images in a batch than ranks.
        """
        if not len(sizes) or not short_sides or world_size < 1 or batch_size < world_size:
            raise ValueError(
                "BatchPlan: expected images, short sides and a batch_size of at least world_size (1 or more), got "
                f"{len(sizes)} images, {len(short_sides)} short sides, batch_size {batch_size}, world_size {world_size}"
            )
        self._batch_size, self._world_size, self._seed = batch_size, world_size, seed
        self._flip_probability, self._short_sides = flip_probability, tuple(short_sides)
        self._steps_per_size = steps_per_size
        self._num_images, self._partner_probability = len(sizes), partner_probability
        factors = None if repeat_factors is None else np.asarray(repeat_factors, dtype=np.float64)
        groups = aspect_groups(sizes, batch_size, aspect_ratio_factor)
        self._streams = [_Stream(seed, number, members, factors) for number, members in enumerate(groups)]
        self._orders: dict[tuple[int, int], NDArray[np.int32]] = {}
        self._epoch_turns: tuple[int, NDArray[np.int64]] | None = None

    def batch(self, step: int, rank: int = 0) -> list[Sample]:
        """The samples of `rank` at `step` (both from 0)."""
        stream, position = self._locate(step)
        return [self._sample(step, slot, self._image(stream, position + slot)) for slot in self.slots(rank)]

    def candidate(self, step: int, slot: int, number: int) -> Sample:
        """The sample of a slot at `step` where those before it cannot be used: 0 is that of `batch`, and the next one
        has that slot in the stream's next batch, and another partner."""
        stream, position = self._locate(step)
        return self._sample(step, slot, self._image(stream, position + slot + number * self._batch_size), number)

    def slots(self, rank: int = 0) -> range:
        """The slots of a batch that are `rank`'s."""
        return slots_of(rank, self._world_size, self._batch_size)

    def epoch(self, step: int) -> int:
        """The epoch (from 0) that `step` belongs to: the first one whose batches reach beyond it."""
        # Every epoch shows every image at least once, and each stream holds back less than a batch.
        low, high = 0, (step + 1 + len(self._streams)) * self._batch_size // self._num_images + 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._steps_before(middle + 1) > step else (middle + 1, high)
        return low

    def _locate(self, step: int) -> tuple[int, int]:
        """The stream that feeds `step`, and the position in it of the batch's first image."""
        epoch = self.epoch(step)
        order = self._turns(epoch)
        offset = step - self._steps_before(epoch)
        stream = int(order[offset])
        # Batches that the stream gave before: in earlier epochs, and earlier in this one.
        earlier = self._batches_before(stream, epoch) + int(np.count_nonzero(order[:offset] == stream))
        return stream, earlier * self._batch_size

    def _turns(self, epoch: int) -> NDArray[np.int64]:
        """The stream of every batch of an epoch; kept until another one is asked for."""
        if self._epoch_turns is None or self._epoch_turns[0] != epoch:
            # Each stream's number, once for each batch that it has in this epoch.
            labels = np.concatenate(
                [
                    np.full(self._batches_before(stream, epoch + 1) - self._batches_before(stream, epoch), stream)
                    for stream in range(len(self._streams))
                ]
            )
            # The streams take their turns in a random order.
            order = counter_generator(self._seed, _EPOCH_ORDER, epoch, 0).permutation(labels)
            self._epoch_turns = epoch, order
        return self._epoch_turns[1]

    def _batches_before(self, stream: int, epoch: int) -> int:
        return self._streams[stream].shown_before(epoch) // self._batch_size

    def _steps_before(self, epoch: int) -> int:
        return sum(self._batches_before(stream, epoch) for stream in range(len(self._streams)))

    def _image(self, stream: int, position: int) -> int:
        cycle, offset = self._streams[stream].find(position)
        order = self._orders.get((stream, cycle))
        if order is None:
            order = self._streams[stream].order(cycle)
            while self._orders and sum(map(len, self._orders.values())) + len(order) > _CACHED_IMAGES:
                self._orders.pop(next(iter(self._orders)))
            self._orders[stream, cycle] = order
        return int(order[offset])

    def _sample(self, step: int, slot: int, index: int, number: int = 0) -> Sample:
        generator = counter_generator(self._seed, _AUGMENTATION, step, slot)
        flip = bool(generator.random() < self._flip_probability)
        if self._steps_per_size:  # no number of the image, but of the steps that share a size
            generator = counter_generator(self._seed, _SHORT_SIDE, step // self._steps_per_size, 0)
        short_side = self._short_sides[int(generator.integers(len(self._short_sides)))]
        partner = None
        if self._partner_probability > 0:
            other = counter_generator(self._seed, _PARTNER, step, slot)
            if other.random() < self._partner_probability:
                partner = [int(other.integers(self._num_images)) for _ in range(number + 1)][number]
        seed = int(counter_generator(self._seed, _SEED, step, slot).integers(2**63))
        return Sample(index=index, flip=flip, short_side=short_side, seed=seed, partner=partner)


class _Stream:
    """One group of images, endlessly repeated."""

    def __init__(self, seed: int, number: int, members: NDArray[np.int32], factors: NDArray[np.float64] | None) -> None:
        self._seed, self._number, self._members = seed, number, members
        self._factors = self._phases = None
        if factors is not None and (factors[members] != 1.0).any():
            self._factors = factors[members]
            self._phases = counter_generator(seed, _PHASE, number, 0).random(len(members))
        self._totals: dict[int, int] = {}

    def shown_before(self, cycle: int) -> int:
        """Images shown in the cycles before this one."""
        if self._factors is None:
            return cycle * len(self._members)
        if cycle not in self._totals:
            while len(self._totals) >= _CACHED_TOTALS:
                self._totals.pop(next(iter(self._totals)))
            self._totals[cycle] = int(self._shown(cycle).sum())
        return self._totals[cycle]

    def _shown(self, cycle: int) -> NDArray[np.int64]:
        assert self._factors is not None
        assert self._phases is not None
        return np.floor(cycle * self._factors + self._phases).astype(np.int64)

    def find(self, position: int) -> tuple[int, int]:
        """Cycle and offset in it of a position in the stream."""
        low, high = 0, position // len(self._members) + 1  # a cycle is at least as long as the group is large
        while low < high:  # the first cycle that ends beyond the position
            middle = (low + high) // 2
            low, high = (low, middle) if self.shown_before(middle + 1) > position else (middle + 1, high)
        return low, position - self.shown_before(low)

    def order(self, cycle: int) -> NDArray[np.int32]:
        """The images of a cycle in their random order."""
        images = self._members
        if self._factors is not None:
            images = np.repeat(images, self._shown(cycle + 1) - self._shown(cycle))
        return counter_generator(self._seed, _STREAM_ORDER, self._number, cycle).permutation(images)


def aspect_groups(
    sizes: Sequence[tuple[int, int]] | NDArray[np.int32], batch_size: int, factor: int = 0
) -> list[NDArray[np.int32]]:
    """Image positions by aspect ratio; a group that cannot fill a batch without repeating joins its neighbour.

    Args:
        sizes: (height, width) of each image.
        factor: k. 0: portrait, landscape. Else the borders of width / height are 2^(-1 + i / k), i = 0 .. 2 k, as in
            torchvision's reference (group_by_aspect_ratio).
    """
    borders = [2.0 ** (-1.0 + step / factor) for step in range(2 * factor + 1)] if factor else [1.0]
    sides = np.asarray(sizes, np.float64).reshape(-1, 2)
    # The number of borders at or below an image's ratio is its bucket.
    buckets = np.searchsorted(borders, sides[:, 1] / sides[:, 0], side="right")
    groups = [np.flatnonzero(buckets == bucket).astype(np.int32) for bucket in range(len(borders), -1, -1)]
    joined: list[NDArray[np.int32]] = []
    # A group joins its neighbour where either of them is smaller than a batch.
    for group in groups:  # from wide to tall
        if joined and min(len(joined[-1]), len(group)) < batch_size:
            joined[-1] = np.sort(np.concatenate((joined[-1], group)))
        else:
            joined.append(group)
    return joined
