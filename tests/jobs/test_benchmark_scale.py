"""The benchmarks of many images, with a few."""

import re

import pytest

from jobs.benchmark import main

_LINE = re.compile(
    r"^ +(\d+) +[\d.]+ s +[\d.]+ ms/image +driver +(\d+) MiB +worker +(\d+) MiB(  verified in [\d.]+ s)?$"
)


@pytest.mark.ray
@pytest.mark.slow  # a Ray cluster of its own: some 15 s
@pytest.mark.parametrize("name", ["scale", "manifest"])
def test_each_size_is_a_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--sizes", "[40]"]) == 0
    (line,) = (found for text in capsys.readouterr().out.splitlines() if (found := _LINE.match(text)))
    assert int(line[1]) == 40
    assert int(line[2]) > 0
    assert int(line[3]) > 0
    assert (line[4] is not None) == (name == "scale")
