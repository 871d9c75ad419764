import gc
import threading

import torch

from maskrcnn_core.layers.buffers import BufferPool

LARGE = (1024, 1024)  # 4 MB


def test_memory_is_used_again_when_its_tensor_is_gone() -> None:
    pool = BufferPool()
    first = pool.empty(LARGE)
    place = first.data_ptr()
    del first
    assert pool.empty(LARGE).data_ptr() == place


def test_a_view_keeps_the_memory() -> None:
    pool = BufferPool()
    first = pool.empty(LARGE).fill_(7.0)
    view = first.view(512, 2, 1024).permute(2, 0, 1)[3:5]
    del first
    gc.collect()
    second = pool.empty(LARGE).fill_(1.0)
    assert bool((view == 7.0).all())
    assert bool((second == 1.0).all())


def test_a_small_tensor_does_not_take_a_large_block() -> None:
    pool = BufferPool()
    place = pool.empty((4096, 1024)).data_ptr()
    assert pool.empty(LARGE).data_ptr() != place
    assert pool.empty((3000, 1024)).data_ptr() == place


def test_what_is_kept_is_bounded() -> None:
    pool = BufferPool(max_bytes=10 << 20)
    held = pool.empty(LARGE)
    for rows in (1024, 2049):
        pool.empty((rows, 1024))
    assert pool.kept_bytes <= (10 << 20) + 4 * 2049 * 1024
    assert held.shape == LARGE


def test_shapes_and_values() -> None:
    pool = BufferPool()
    for shape in ((2, 3), (0, 4), (3, 1000, 1000)):
        tensor = pool.empty(shape)
        assert tensor.shape == shape
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()


def test_threads_never_share_a_block() -> None:
    pool = BufferPool()
    wrong = []

    def work(value: float) -> None:
        for _ in range(50):
            mine = pool.empty(LARGE).fill_(value)
            if not bool((mine == value).all()):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(index),)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
