"""What users run: `python -m jobs.NAME`."""

import maskrcnn_core  # noqa: F401 - before torch, whose threads it tells how to wait
