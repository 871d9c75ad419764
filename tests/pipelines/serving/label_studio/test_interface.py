"""What of a project's labelling interface predictions go by."""

import pytest

from maskrcnn_core.export.label_studio import EXPORTED
from pipelines.serving.label_studio.interface import labelling_interface
from pipelines.serving.problems import Problem

OWN = """<View>
  <Header value="Mark everything"/>
  <!-- the picture -->
  <Image name="img" value="$photo" zoom="true"/>
  <BrushLabels name="brush" toName="img"><Label value="Person" background="red"/><Label value="star"/></BrushLabels>
  <BrushLabels name="second" toName="img"><Label value="ring"/></BrushLabels>
  <Choices name="quality" toName="img"><Choice value="good"/></Choices>
</View>"""


def test_names_labels_and_the_picture() -> None:
    interface = labelling_interface(OWN)
    assert interface.controls.image == "img"
    assert interface.image_key == "photo"
    assert interface.takes("brushlabels")
    assert not interface.takes("rectanglelabels")
    assert interface.controls.names["brushlabels"] == "brush"
    assert interface.label("brushlabels", "person") == "Person"
    assert interface.label("brushlabels", "STAR") == "star"
    assert interface.label("brushlabels", "ring") is None
    assert interface.label("polygonlabels", "person") is None


def test_the_first_picture_counts() -> None:
    interface = labelling_interface(
        '<View><Image name="a" value="$first"/><Image name="b" value="$second"/>'
        '<PolygonLabels name="p" toName="b"><Label value="x"/></PolygonLabels>'
        '<BrushLabels name="m" toName="a"><Label value="x"/></BrushLabels></View>'
    )
    assert (interface.controls.image, interface.image_key) == ("b", "second")
    assert interface.takes("polygonlabels")
    assert not interface.takes("brushlabels")  # it is for the other picture


def test_kinds_are_those_of_the_export() -> None:
    assert set(labelling_interface(OWN).controls.names) == set(EXPORTED.names)


@pytest.mark.parametrize(
    ("xml", "expected"),
    [
        ("", "no XML"),
        ("<View>", "no XML"),
        ("<View/>", "no tag to predict for"),
        ('<View><Image name="a" value="$x"/></View>', "no tag to predict for"),
        ('<View><Text name="a" value="$x"/><BrushLabels name="m" toName="a"/></View>', "no tag to predict for"),
        ('<View><Image name="a" value="a.jpg"/><BrushLabels name="m" toName="a"/></View>', "such as $image"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', "declares a type"),
        ("x" * 2_000_000, "more than"),
        ("<View>" * 100_000, "no XML"),
    ],
)
def test_one_that_cannot_be_used_is_refused(xml: str, expected: str) -> None:
    with pytest.raises(Problem, match="interface") as raised:
        labelling_interface(xml)
    assert raised.value.status == 422
    assert expected in raised.value.detail
