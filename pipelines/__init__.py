"""Ray pipelines as importable functions f(config) -> summary."""

import maskrcnn_core  # noqa: F401 - before torch, whose threads it tells how to wait
