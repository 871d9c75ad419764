"""Several views of an image to one result: frames, merging, means. The detector is a double that reads the pixels."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou, roi_align

from maskrcnn_core.inference.views import (
    MergeRule,
    View,
    boxes_from_view,
    boxes_in_view,
    detect_in_views,
    merge_detections,
    mirrored,
)
from maskrcnn_core.structures import Detections, ImageBatch, ImageFeatures, Proposals
from tests.core.slots import trimmed

RULE = MergeRule(nms_overlap=0.5, max_detections=10, mirrored_keypoints=(1, 0))
SIZE = 28


def batch_of(images: list[Tensor], scale: float = 1.0, padding: int = 7) -> ImageBatch:
    """The images [3, H, W] enlarged, on a common canvas."""
    resized = [functional.interpolate(image[None], scale_factor=scale, mode="nearest")[0] for image in images]
    height, width = (max((image.shape[axis] for image in resized), default=1) + padding for axis in (1, 2))
    pixels = torch.zeros(len(images), 3, height, width)
    for slot, image in zip(pixels, resized, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
    return ImageBatch(
        pixels,
        torch.tensor([image.shape[1:] for image in resized]).view(-1, 2),
        torch.tensor([image.shape[1:] for image in images]).view(-1, 2),
    )


def found(*boxes: tuple[float, ...], scores: list[float], labels: list[int] | None = None) -> Detections:
    """Detections in one image."""
    return Detections(
        torch.tensor([boxes], dtype=torch.float32).view(1, -1, 4),
        torch.tensor([scores]),
        torch.tensor([labels or [0] * len(scores)]),
        torch.tensor([len(scores)]),
    )


# ---- frames ----------------------------------------------------------------------------------------------------------


def test_boxes_in_a_view_by_eye() -> None:
    images = ImageBatch(torch.zeros(1, 3, 64, 224), torch.tensor([[50, 200]]), torch.tensor([[25, 100]]))
    boxes = torch.tensor([[[10.0, 5.0, 30.0, 15.0]]])
    assert boxes_in_view(boxes, View(images)).tolist() == [[[20, 10, 60, 30]]]
    assert boxes_in_view(boxes, View(images, flipped=True)).tolist() == [[[140, 10, 180, 30]]]  # 200 - 60, 200 - 20
    assert boxes_from_view(torch.tensor([[[140.0, 10.0, 180.0, 30.0]]]), View(images, flipped=True)).equal(boxes)
    beyond = torch.tensor([[[-5.0, -5.0, 220.0, 64.0]]])
    assert boxes_from_view(beyond, View(images)).tolist() == [[[0, 0, 100, 25]]]


@pytest.mark.parametrize("flipped", [False, True])
def test_there_and_back(flipped: bool) -> None:
    view = View(batch_of([torch.zeros(3, 40, 30), torch.zeros(3, 20, 50)], 1.5), flipped)
    corners = torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(0)) * 10
    boxes = torch.cat((corners, corners + 10), dim=-1)
    torch.testing.assert_close(boxes_from_view(boxes_in_view(boxes, view), view), boxes)


def test_images_are_mirrored_within_their_own_size() -> None:
    wide, narrow = torch.rand(3, 4, 9), torch.rand(3, 6, 5)
    images = batch_of([wide, narrow])
    turned = mirrored(images)
    assert turned.pixels[0, :, :4, :9].equal(wide.flip(-1))
    assert turned.pixels[1, :, :6, :5].equal(narrow.flip(-1))
    assert turned.pixels[1, :, :, 5:].count_nonzero() == 0
    assert mirrored(turned).pixels.equal(images.pixels)
    assert turned.pixels.is_contiguous(memory_format=torch.channels_last)
    assert mirrored(batch_of([])).pixels.shape[0] == 0


# ---- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed_size", [False, True])
def test_views_of_one_object_become_one(fixed_size: bool) -> None:
    first = found((0, 0, 10, 10), (50, 50, 60, 60), scores=[0.6, 0.5])
    second = found((1, 0, 10, 10), (80, 80, 90, 90), scores=[0.9, 0.3])
    merged = trimmed(merge_detections([first, second], RULE, fixed_size=fixed_size))
    assert merged.boxes.tolist() == [[[1, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]]]
    assert merged.scores[0].tolist() == pytest.approx([0.9, 0.5, 0.3])
    assert merged.count.tolist() == [3]


def test_classes_compete_only_where_asked() -> None:
    views = [found((0, 0, 10, 10), scores=[0.6], labels=[1]), found((0, 0, 10, 10), scores=[0.9], labels=[2])]
    assert trimmed(merge_detections(views, RULE)).labels.tolist() == [[2, 1]]
    assert trimmed(merge_detections(views, replace(RULE, nms_per_class=False))).labels.tolist() == [[2]]


def test_the_best_stay() -> None:
    spread = [found((20.0 * n, 0, 20.0 * n + 10, 10), scores=[0.1 * n]) for n in (3, 5, 1, 4)]
    merged = merge_detections(spread, replace(RULE, max_detections=2))
    assert merged.scores[0].tolist() == pytest.approx([0.5, 0.4])
    assert merged.count.tolist() == [2]


@pytest.mark.parametrize("fixed_size", [False, True])
def test_padded_slots_of_a_view_do_not_count(fixed_size: bool) -> None:
    padded = Detections(
        torch.tensor([[[0.0, 0, 10, 10], [0, 0, 0, 0]], [[5, 5, 9, 9], [0, 0, 4, 4]]]),
        torch.tensor([[0.5, 0.99], [0.7, 0.6]]),  # the slot behind the count would be the best
        torch.zeros(2, 2, dtype=torch.int64),
        torch.tensor([1, 2]),
    )
    merged = trimmed(merge_detections([padded, padded], RULE, fixed_size=fixed_size))
    assert merged.count.tolist() == [1, 2]
    assert merged.boxes.tolist() == [[[0, 0, 10, 10], [0, 0, 1, 1]], [[5, 5, 9, 9], [0, 0, 4, 4]]]
    assert merged.scores[0, 1] == 0


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_merging_is_greedy_suppression(seed: int, fixed_size: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    views = []
    for _ in range(3):
        corners = torch.rand(2, 6, 2, generator=random) * 20
        boxes = torch.cat((corners, corners + 5 + torch.rand(2, 6, 2, generator=random) * 10), dim=-1)
        labels = torch.randint(0, 2, (2, 6), generator=random)
        count = torch.randint(0, 7, (2,), generator=random)
        views.append(Detections(boxes, torch.rand(2, 6, generator=random), labels, count))
    merged = merge_detections(views, replace(RULE, max_detections=5), fixed_size=fixed_size)
    for image in range(2):
        candidates = sorted(
            (
                (float(view.scores[image, slot]), int(view.labels[image, slot]), view.boxes[image, slot])
                for view in views
                for slot in range(int(view.count[image]))
            ),
            key=lambda candidate: -candidate[0],
        )
        kept: list[tuple[float, int, Tensor]] = []
        for candidate in candidates:
            rivals = [other[2] for other in kept if other[1] == candidate[1]]
            if not rivals or box_iou(candidate[2][None], torch.stack(rivals)).max() <= 0.5:
                kept.append(candidate)
        kept = kept[:5]
        assert merged.count[image] == len(kept)
        assert merged.scores[image, : len(kept)].tolist() == [score for score, _, _ in kept]
        assert merged.labels[image, : len(kept)].tolist() == [label for _, label, _ in kept]


# ---- the whole -------------------------------------------------------------------------------------------------------


class Reader:
    """Finds the bright rectangle of channels 0 and 1 (their labels), draws what it sees there, and calls the leftmost
    and rightmost columns of channel 2 its two keypoints. With proposals it takes each as a detection."""

    def __init__(self, fixed_size: bool = False) -> None:
        self._fixed_size = fixed_size

    def features(self, images: ImageBatch) -> ImageFeatures:
        return ImageFeatures([], (), images.input_sizes, images.pixels, fixed_size=self._fixed_size)

    def boxes(self, state: ImageFeatures, proposals: Proposals | None = None) -> Detections:
        if proposals is not None:
            labels = torch.zeros_like(proposals.scores, dtype=torch.int64)
            return Detections(proposals.boxes, proposals.scores, labels, proposals.count)
        num_images = len(state.pixels)
        boxes, labels = torch.zeros(num_images, 2, 4), torch.zeros(num_images, 2, dtype=torch.int64)
        count = torch.zeros(num_images, dtype=torch.int64)
        for image, pixels in enumerate(state.pixels):
            for channel in range(2):
                rows, columns = (pixels[channel] > 0.5).nonzero().unbind(1)
                if len(rows):
                    slot = int(count[image])
                    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                    boxes[image, slot], labels[image, slot] = torch.stack(edges).float(), channel
                    count[image] += 1
        return Detections(boxes, torch.where(count[:, None] > torch.arange(2), 0.5, 0.0), labels, count)

    def _seen(self, state: ImageFeatures, found: Detections, channel: Tensor) -> Tensor:
        num_images, slots = found.scores.shape
        images = torch.arange(num_images).repeat_interleave(slots)
        rois = torch.cat((images[:, None].float(), found.boxes.flatten(0, 1)), dim=1)
        seen = roi_align(state.pixels, rois, SIZE, 1.0, 4, True)
        return seen[torch.arange(len(seen)), channel.flatten()].view(num_images, slots, SIZE, SIZE)

    def masks(self, state: ImageFeatures, found: Detections) -> Tensor | None:
        return self._seen(state, found, found.labels)

    def heatmaps(self, state: ImageFeatures, found: Detections) -> Tensor | None:
        spots = self._seen(state, found, torch.full_like(found.labels, 2))
        place = torch.arange(SIZE, dtype=torch.float32)
        return torch.stack((spots * (SIZE - place), spots * (place + 1)), dim=2)

    def keypoints(self, state: ImageFeatures, heatmaps: Tensor, found: Detections) -> Tensor:
        best = heatmaps.flatten(-2).argmax(dim=-1)  # [N, D, P]
        cells = torch.stack((best % SIZE, best // SIZE), dim=-1) + 0.5
        sides = found.boxes[..., 2:] - found.boxes[..., :2]
        assert (sides <= max(state.input_shape)).all()
        xy = found.boxes[..., None, :2] + cells * sides[..., None, :] / SIZE
        return torch.cat((xy, torch.ones_like(xy[..., :1])), dim=-1)


def picture() -> Tensor:
    """An L of class 0 (asymmetric in both axes), a block of class 1, and two spots in the L's box."""
    image = torch.zeros(3, 40, 60)
    image[0, 4:32, 6:10] = 1
    image[0, 28:32, 6:34] = 1
    image[1, 10:20, 44:56] = 1
    image[2, 8:10, 8:10] = 1
    image[2, 24:26, 30:32] = 1
    return image


def views_of(images: list[Tensor], scales: tuple[float, ...], *, flip: bool) -> list[View]:
    views = [View(batch_of(images, scale)) for scale in scales]
    return views + [View(mirrored(view.images), flipped=True) for view in views] if flip else views


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_all_views_of_a_picture_agree_with_one(flip: bool, fixed_size: bool) -> None:
    images = [picture(), picture()[:, :, :36]]  # the second has no object of class 1
    once = trimmed(detect_in_views(Reader(), views_of(images, (1.0,), flip=False), RULE))
    often = trimmed(detect_in_views(Reader(fixed_size), views_of(images, (1.0, 2.0, 3.0), flip=flip), RULE))
    assert often.count.tolist() == once.count.tolist() == [2, 1]
    assert often.boxes[0].tolist() == [[6, 4, 34, 32], [44, 10, 56, 20]]
    assert often.boxes[1, 0].tolist() == [6, 4, 34, 32]
    assert often.labels.equal(once.labels)
    assert once.masks is not None
    assert often.masks is not None
    assert once.keypoints is not None
    assert often.keypoints is not None
    own = often.masks[:, 0] > 0.5
    assert own.equal(once.masks[:, 0] > 0.5)
    assert own[0].tolist() == (picture()[0, 4:32, 6:34] > 0).tolist()
    torch.testing.assert_close(often.keypoints[:, 0], once.keypoints[:, 0], atol=1.0, rtol=0)
    left, right = often.keypoints[0, 0, :, :2].tolist()
    assert left == pytest.approx([9, 9], abs=1)
    assert right == pytest.approx([31, 25], abs=1)
    assert often.keypoints[1, 1].count_nonzero() == 0  # padding


def test_masks_are_means() -> None:
    class Unsure(Reader):
        def masks(self, state: ImageFeatures, found: Detections) -> Tensor:
            width = state.input_sizes[:, 1].view(-1, 1, 1, 1) / 60.0  # 1, 2 and 3 in the three sizes
            return 0.1 * width.expand(-1, found.boxes.shape[1], SIZE, SIZE)

    masks = detect_in_views(Unsure(), views_of([picture()], (1.0, 2.0, 3.0), flip=True), RULE).masks
    assert masks is not None
    torch.testing.assert_close(masks, torch.full_like(masks, 0.2))


def test_without_heads_only_boxes() -> None:
    class BoxesOnly(Reader):
        def masks(self, state: ImageFeatures, found: Detections) -> None:
            return None

        def heatmaps(self, state: ImageFeatures, found: Detections) -> None:
            return None

    result = detect_in_views(BoxesOnly(), views_of([picture()], (1.0, 2.0), flip=True), RULE)
    assert result.count.tolist() == [2]
    assert result.masks is None
    assert result.keypoints is None


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("images", [[], [torch.zeros(3, 8, 9)]])
def test_nothing_found(images: list[Tensor], fixed_size: bool) -> None:
    result = trimmed(detect_in_views(Reader(fixed_size), views_of(images, (1.0, 2.0), flip=True), RULE))
    assert result.count.tolist() == [0] * len(images)
    assert result.boxes.shape == (len(images), 0, 4)
    assert result.masks is not None
    assert result.masks.shape == (len(images), 0, SIZE, SIZE)
    assert result.keypoints is not None
    assert result.keypoints.shape == (len(images), 0, 2, 3)


@pytest.mark.parametrize("fixed_size", [False, True])
def test_given_proposals_are_brought_into_each_view(fixed_size: bool) -> None:
    boxes = torch.tensor([[[6.0, 4, 34, 32], [40, 1, 58, 30]]])
    proposals = Proposals(boxes, torch.tensor([[0.9, 0.8]]), torch.tensor([2]))
    views = views_of([picture()], (1.0, 2.0), flip=True)
    result = trimmed(detect_in_views(Reader(fixed_size), views, RULE, proposals))
    torch.testing.assert_close(result.boxes, boxes)
