import pytest

from maskrcnn_core.printable import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name (1).jpg", "plain name (1).jpg"),
        ("a\nb\tc\r.jpg", "a\\nb\\tc\\r.jpg"),
        ("\x1b]0;title\x07\x1b[2J.jpg", "\\x1b]0;title\\x07\\x1b[2J.jpg"),
        ("\u202egpj.exe", "\\u202egpj.exe"),  # right to left
        ("caf\udce9.jpg", "caf\\udce9.jpg"),  # a byte that is not UTF-8
        ("line\u2028end", "line\\u2028end"),
        ("\x85\x9b31m", "\\x85\\x9b31m"),  # control characters of eight bits
        ("Größe 細胞 ✓ 😀", "Größe 細胞 ✓ 😀"),
        (r"C:\images\a.jpg", r"C:\images\a.jpg"),
        ("", ""),
    ],
)
def test_a_terminal_obeys_no_character_of_a_name(name: str, shown: str) -> None:
    assert printable(name) == shown
    printable(name).encode()  # any stream can hold it
