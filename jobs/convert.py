"""Convert a checkpoint: `python -m jobs.convert --source FILE --output FOLDER`."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import run_job
from maskrcnn_core.printable import printable
from pipelines.conversion.config import ConvertRun

if TYPE_CHECKING:
    from maskrcnn_core.config.model import Category, ModelConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return run_job(ConvertRun, run, prog="python -m jobs.convert", argv=argv)


def run(settings: ConvertRun) -> int:
    """Convert, then say what the checkpoint is and what can be done with it."""
    from maskrcnn_core.data.coco.dataset import load_categories
    from maskrcnn_core.importers.convert import convert_described, description

    categories = None
    if settings.annotations is not None:
        categories = load_categories(settings.annotations)
    described = description(settings.source, settings.source_config)
    if described is not None:
        config = convert_described(settings.source, described, settings.output, categories=categories)
    else:
        config = _converted(settings, categories)
    parts = [config.backbone.name, config.pyramid.kind]
    parts.append("boxes" if config.finds == "detections" else "proposals")
    parts += [name for name, head in (("masks", config.mask_head), ("keypoints", config.keypoint_head)) if head.enabled]
    print(printable(f"checkpoint: {settings.output} ({', '.join(parts)}; {len(config.categories)} categories)"))
    needs = "" if config.dense.enabled else " --proposals URI"
    needs += "" if config.finds == "detections" else " --label.record proposals"
    command = f"python -m jobs.label --checkpoint {shlex.quote(settings.output)} --images IMAGES --output LABELS{needs}"
    print(f"next:\n  {printable(command)}")
    return 0


def _converted(settings: ConvertRun, categories: "tuple[Category, ...] | None") -> "ModelConfig":
    """Convert a file whose weights have names; says where they were found, and what was left out."""
    from maskrcnn_core.importers.config_names import parse_source_config
    from maskrcnn_core.importers.convert import convert_file, read_foreign
    from maskrcnn_core.printable import listed

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
        where = f"the weights are {printable(file.place)}; " if file.place else ""
        print(f"{printable(settings.source)}: {where}left out: {listed(file.left_out)}")
    return config


if __name__ == "__main__":
    sys.exit(main())
