"""Which results of a layer on a CPU are computed in bands, and how much work a band is."""

import torch

# Results above this are computed band by band: libc gives blocks of 32 MB and more back to the system.
WHOLE_BYTES = 30 << 20

# Less work in all is left to torch's threads together. Operations; a value that is written takes as long as some.
LEAST_WORK = 200 << 20
WORK_OF_VALUE = 64


def is_whole(result_bytes: int, work: int, least_work: int = 0) -> bool:
    """Whether a result is computed at once.

    Args:
        result_bytes: of it.
        work: operations that it takes, with `WORK_OF_VALUE` for each value.
        least_work: that bands are worth, where it is more than `LEAST_WORK`.
    """
    return result_bytes <= WHOLE_BYTES and (torch.get_num_threads() < 2 or work < max(LEAST_WORK, least_work))
