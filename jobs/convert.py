"""Convert a checkpoint: `python -m jobs.convert --source FILE --output FOLDER`."""

import shlex
import sys
from collections.abc import Sequence

from jobs.cli import run_job
from maskrcnn_core.convert_config import ConvertRun


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return run_job(ConvertRun, run, prog="python -m jobs.convert", argv=argv)


def run(settings: ConvertRun) -> int:
    """Convert, then say what the checkpoint is and what can be done with it."""
    from maskrcnn_core.data.coco import load_coco
    from maskrcnn_core.weights.convert import convert_checkpoint

    categories = None
    if settings.annotations is not None:
        categories = load_coco(settings.annotations, require_masks=False).categories
    config = convert_checkpoint(
        settings.source,
        settings.output,
        categories=categories,
        norm_eps=settings.norm_eps or None,
        source_config=settings.source_config,
    )
    parts = [config.backbone.name, config.pyramid.kind]
    heads = (("boxes", config.box_head), ("masks", config.mask_head), ("keypoints", config.keypoint_head))
    parts += [name for name, head in heads if head.enabled] or ["proposals"]
    print(f"checkpoint: {settings.output} ({', '.join(parts)}; {len(config.categories)} categories)")
    needs = "" if config.rpn.enabled else " --proposals URI"
    needs += "" if config.box_head.enabled else " --label.record proposals"
    checkpoint = shlex.quote(settings.output)
    print(f"next:\n  python -m jobs.label --checkpoint {checkpoint} --images FOLDER --output FOLDER{needs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
