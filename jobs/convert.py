"""Convert a checkpoint: `python -m jobs.convert --source FILE --output FOLDER`."""

import shlex
import sys
from collections.abc import Sequence

from jobs.cli import run_job
from maskrcnn_core.convert_config import ConvertRun
from maskrcnn_core.printable import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return run_job(ConvertRun, run, prog="python -m jobs.convert", argv=argv)


def run(settings: ConvertRun) -> int:
    """Convert, then say what the checkpoint is and what can be done with it."""
    from maskrcnn_core.data.coco import load_categories
    from maskrcnn_core.weights.convert import convert_file, read_foreign
    from maskrcnn_core.weights.source_configs import parse_source_config
    from maskrcnn_core.weights.translation import listed

    categories = None
    if settings.annotations is not None:
        categories = load_categories(settings.annotations)
    said = None if settings.source_config is None else parse_source_config(settings.source_config)
    file = read_foreign(settings.source)
    config = convert_file(
        file,
        settings.source,
        settings.output,
        categories=categories,
        norm_eps=settings.norm_eps or None,
        said=said,
    )
    if file.left_out:
        place = f"the weights are {printable(file.place)}; " if file.place else ""
        print(f"{printable(settings.source)}: {place}left out: {listed(file.left_out)}")
    parts = [config.backbone.name, config.pyramid.kind]
    heads = (("boxes", config.box_head), ("masks", config.mask_head), ("keypoints", config.keypoint_head))
    parts += [name for name, head in heads if head.enabled] or ["proposals"]
    print(printable(f"checkpoint: {settings.output} ({', '.join(parts)}; {len(config.categories)} categories)"))
    needs = "" if config.rpn.enabled else " --proposals URI"
    needs += "" if config.box_head.enabled else " --label.record proposals"
    command = f"python -m jobs.label --checkpoint {shlex.quote(settings.output)} --images IMAGES --output LABELS{needs}"
    print(f"next:\n  {printable(command)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
