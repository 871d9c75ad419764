"""Text messages as Caffe's descriptions have them, and what is said of other texts."""

import random

import pytest

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.weights.prototxt import parse_prototxt


def test_a_message_by_eye() -> None:
    message = parse_prototxt(
        """
        name: "net"  # a comment { with: marks }
        dim: 3 dim: -1.5e1
        layer { name: 'one' param { lr_mult: 0 } param: { lr_mult: 2; decay: 1, } }
        layer { }
        """
    )
    assert message.text("name") == "net"
    assert message.numbers("dim") == (3.0, -15.0)
    first, second = message.messages("layer")
    assert first.text("name") == "one"
    assert first.line == 4
    assert [inner.whole("lr_mult", 9) for inner in first.messages("param")] == [0, 2]
    assert second.fields == {}
    assert (second.text("type", "none"), second.number("step", 0.5)) == ("none", 0.5)
    assert message.message("absent").fields == {}


def test_nothing_is_an_empty_message() -> None:
    assert parse_prototxt("# nothing\n").fields == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layer {", "it ends within the message of line 1"),
        ("name:", "it ends within"),
        ("}", "a closing bracket where"),
        ("layer { name }", "a closing bracket where"),
        ("\n{ }", "line 2: a bracket without a name"),
        (": 3", "a colon without a name"),
        ('"text" "text"', "expected the name of a field"),
        ("a: [1, 2]", "expected name: value"),
        ('a: "no end', "expected name: value"),
        ("a {" * 20, "too many within each other"),
        ("a: \x00[", "expected name: value"),
    ],
)
def test_no_message(text: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        parse_prototxt(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", ["nan", "inf", "1e300", "x"])
def test_numbers_that_are_none(value: str) -> None:
    with pytest.raises(CheckpointError, match="expected"):
        parse_prototxt(f"a: {value}").number("a", 0.0)
    with pytest.raises(CheckpointError, match="whole number"):
        parse_prototxt("a: 1.5").whole("a", 0)


def test_damaged_text_is_a_message_or_refused() -> None:
    sound = 'layer { name: "one" type: "ReLU" bottom: "data" top: "one" param { lr_mult: 2 } }\n' * 3
    random_, refused = random.Random(0), 0
    for _ in range(300):
        letters = list(sound)
        for _ in range(random_.randint(1, 4)):
            letters[random_.randrange(len(letters))] = random_.choice('{}:"# \n\x00é7')
        try:
            parse_prototxt("".join(letters))
        except CheckpointError:
            refused += 1
    assert 50 < refused < 300
