"""A project's labelling interface, as far as predictions need it: which tags take which labels.

Format: labelstud.io/tags. A tag such as `<BrushLabels name="masks" toName="image">` holds `<Label value="...">`; its
`toName` is the name of an `<Image value="$key">`, and `key` is where a task's data have the picture.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass

from maskrcnn_core.export.label_studio import EXPORTED, Controls
from pipelines.serving.problems import Problem

_LONGEST = 1 << 20  # characters of an interface


@dataclass(frozen=True)
class LabellingInterface:
    """What a project takes.

    Attributes:
        controls: names of its tags, empty for kinds of region that it has no tag for.
        labels: by kind of region, labels by their lower-case text.
        image_key: where a task's data have the picture.
    """

    controls: Controls
    labels: Mapping[str, Mapping[str, str]]
    image_key: str

    def takes(self, kind: str) -> bool:
        """Whether there is a tag for a kind of region."""
        return bool(self.controls.names.get(kind))

    def label(self, kind: str, name: str) -> str | None:
        """The project's label of this name, whatever its case; None where it has none."""
        return self.labels.get(kind, {}).get(name.casefold())


def labelling_interface(xml: str) -> LabellingInterface:
    """Of a project.

    Raises:
        Problem: 422, no XML, or no picture that can be labelled.
    """
    root = _parsed(xml)
    images = {tag.get("name", ""): tag.get("value", "") for tag in root.iter("Image")}
    tags: dict[str, ElementTree.Element] = {}
    image = ""
    for tag in root.iter():
        kind, target = tag.tag.lower(), tag.get("toName", "")
        # Of several of a kind, and of several pictures, the first one.
        if kind in EXPORTED.names and target in images and image in ("", target) and kind not in tags:
            tags[kind], image = tag, target
    if not tags or not images[image].startswith("$"):
        expected = (
            "BrushLabels, PolygonLabels, RectangleLabels or KeyPointLabels for an Image with a value such as $image"
        )
        raise Problem(422, f"the labelling interface has no tag to predict for; expected {expected}")
    return LabellingInterface(
        Controls({kind: tags[kind].get("name", "") if kind in tags else "" for kind in EXPORTED.names}, image),
        {kind: _labels(tag) for kind, tag in tags.items()},
        images[image].removeprefix("$"),
    )


def _parsed(xml: str) -> ElementTree.Element:
    # Entities of its own are what makes a small document large; no interface needs them.
    if len(xml) > _LONGEST or "<!" in xml.replace("<!--", ""):
        raise Problem(422, f"the labelling interface has more than {_LONGEST:,} characters, or declares a type")
    try:
        return ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise Problem(422, f"the labelling interface is no XML: {error}") from None


def _labels(tag: ElementTree.Element) -> Mapping[str, str]:
    values = [value for label in tag.iter("Label") if (value := label.get("value"))]
    return {value.casefold(): value for value in reversed(values)}
