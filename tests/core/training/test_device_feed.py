import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch

from maskrcnn_core.model.trunks.trunk import build_trunk
from maskrcnn_core.structures import ImageBatch, Proposals, Targets
from maskrcnn_core.training.device_feed import feed, one_ahead, pixel_type

CPU = torch.device("cpu")


class Named(NamedTuple):
    images: ImageBatch
    targets: Targets
    image_ids: list[int]
    proposals: Proposals | None


def batch_of(number: int, side: int = 8, proposals: bool = False) -> Named:
    """A batch full of one number."""
    sizes = torch.full((2, 2), number)
    boxes = torch.full((2, 3, 4), float(number))
    known = torch.ones(2, 3, dtype=torch.bool)
    pixels = torch.full((2, 3, side, side), float(number)).contiguous(memory_format=torch.channels_last)
    given = Proposals(boxes, boxes[..., 0], torch.full((2,), number)) if proposals else None
    targets = Targets(boxes, torch.full((2, 3), number), known, ~known)
    return Named(ImageBatch(pixels, sizes, sizes), targets, [number], given)


class Recorded:
    """Numbers up to `count`, then an error where one is asked for; notes what was asked of it."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.made: list[int] = []
        self.closed = False
        self._count, self._error = count, error

    def numbers(self) -> Iterator[int]:
        try:
            for number in range(self._count):
                self.made.append(number)
                yield number
            if self._error is not None:
                raise self._error
        finally:
            self.closed = True

    def wait_for(self, count: int) -> None:
        """Until so many are made, and then long enough for one more."""
        deadline = time.monotonic() + 5.0
        while len(self.made) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)


def feeding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


def test_one_item_and_no_more_is_made_ahead() -> None:
    source = Recorded(4)
    items = one_ahead(source.numbers())
    assert source.made == []
    found = []
    for place in range(4):
        found.append(next(items))
        source.wait_for(min(place + 2, 4))
        assert source.made == list(range(min(place + 2, 4)))
    assert next(items, None) is None
    assert found == [0, 1, 2, 3]
    assert source.closed
    assert not feeding_threads()


def test_nothing_comes_of_nothing() -> None:
    assert list(one_ahead(iter([]))) == []
    assert list(feed(iter([]), CPU)) == []


def test_an_error_comes_after_the_good_items_before_it() -> None:
    source = Recorded(2, OSError("disk"))
    items = one_ahead(source.numbers())
    assert next(items) == 0
    assert next(items) == 1
    source.wait_for(2)  # by now the thread has met the error
    with pytest.raises(OSError, match="disk"):
        next(items)
    assert next(items, None) is None
    assert not feeding_threads()


def test_closing_early_ends_the_thread_and_the_source() -> None:
    source = Recorded(100)
    items = one_ahead(source.numbers())
    next(items)
    items.close()
    assert source.closed
    assert source.made in ([0], [0, 1])
    assert not feeding_threads()


def test_closing_waits_for_the_item_that_is_being_made() -> None:
    begun, go_on = threading.Event(), threading.Event()
    ended = []

    def numbers() -> Iterator[int]:
        yield 0
        begun.set()
        go_on.wait(5.0)
        ended.append(True)
        yield 1

    items = one_ahead(numbers())
    next(items)
    assert begun.wait(5.0)
    threading.Timer(0.1, go_on.set).start()
    items.close()
    assert ended == [True]


def test_on_a_cpu_batches_are_made_ready_when_asked_for() -> None:
    source = Recorded(3)
    given = [batch_of(number) for number in range(3)]
    batches = feed((given[number] for number in source.numbers()), CPU)
    for place, batch in enumerate(batches):
        assert isinstance(batch, Named)
        assert batch.images.pixels is given[place].images.pixels
        assert batch.targets.boxes is given[place].targets.boxes
        assert batch.image_ids is given[place].image_ids
        assert source.made == list(range(place + 1))
    assert source.closed


def test_on_a_cpu_closing_closes_the_source() -> None:
    source = Recorded(3)
    batches = feed(((number,) for number in source.numbers()), CPU)
    assert next(batches) == (0,)
    batches.close()
    assert source.made == [0]


def test_pixels_are_rounded_only_where_the_network_would() -> None:
    cuda = torch.device("cuda:0")
    assert pixel_type(cuda, bfloat16=True, rounds_input=True) == torch.bfloat16
    assert pixel_type(cuda, bfloat16=False, rounds_input=True) == torch.float32
    assert pixel_type(CPU, bfloat16=True, rounds_input=True) == torch.float32
    assert pixel_type(cuda, bfloat16=True, rounds_input=False) == torch.float32


@pytest.mark.parametrize(
    "name", ["resnet18", "alexnet", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small", "inception_v3"]
)
def test_a_trunk_under_autocast_gives_the_same_of_rounded_pixels(name: str) -> None:
    torch.manual_seed(0)
    trunk = build_trunk(name, pretrained=False, frozen_stages=0)
    pixels = torch.randn(1, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, found = trunk.eval()(pixels), trunk(pixels.to(torch.bfloat16))
    assert all(torch.equal(*maps) for maps in zip(expected, found, strict=True))


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.gpu
def test_batches_arrive_on_a_gpu(cuda: torch.device) -> None:
    given = [batch_of(number, proposals=number % 2 == 1) for number in range(5)]
    for batch, found in zip(given, feed(iter(given), cuda), strict=True):
        assert isinstance(found, Named)
        assert found.image_ids is batch.image_ids
        assert found.images.pixels.device == cuda
        assert found.images.pixels.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found.images.pixels.cpu(), batch.images.pixels)
        assert torch.equal(found.targets.labels.cpu(), batch.targets.labels)
        assert found.targets.masks is None
        assert (found.proposals is None) == (batch.proposals is None)
        if found.proposals is not None and batch.proposals is not None:
            assert torch.equal(found.proposals.to("cpu").count, batch.proposals.count)
    plain = next(feed(iter([given[0][:2]]), cuda))
    assert type(plain) is tuple
    assert plain[0].pixels.device == cuda


@pytest.mark.gpu
@pytest.mark.parametrize("reused", [False, True])
def test_a_slow_consumer_finds_nothing_overwritten(cuda: torch.device, reused: bool) -> None:
    """Batches are dropped while the device has yet to read them; with `reused`, the source writes one after the other
    into the same page-locked memory."""
    shared = torch.empty(2, 3, 512, 512).pin_memory()

    def batches() -> Iterator[Named]:
        for number in range(12):
            batch = batch_of(number, 512)
            if not reused:
                yield batch
                continue
            shared.fill_(number)
            yield batch._replace(images=ImageBatch(shared, batch.images.input_sizes, batch.images.original_sizes))

    extremes = []
    for batch in feed(batches(), cuda):
        torch.cuda._sleep(30_000_000)
        extremes.append(torch.stack(batch.images.pixels.aminmax()))
        del batch
    assert torch.stack(extremes).tolist() == [[number, number] for number in range(12)]


@pytest.mark.gpu
def test_an_error_on_the_way_to_a_gpu_comes_at_its_place(cuda: torch.device) -> None:
    def broken() -> Iterator[Named]:
        yield batch_of(0)
        raise OSError("disk")

    batches = feed(broken(), cuda)
    assert next(batches).image_ids == [0]
    with pytest.raises(OSError, match="disk"):
        next(batches)
    assert not feeding_threads()
