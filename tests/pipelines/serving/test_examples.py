"""The examples of docs/serving.md, run against a service."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.pipelines.serving.local_service import LocalServer, picture

PAGE = Path(__file__).resolve().parents[3] / "docs/serving.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("street.jpg", "a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(picture(kind="JPEG"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of_server(text: str, server: LocalServer) -> str:
    return text.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}").replace("person", "three").replace(",18", "")


PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_programs(server: LocalServer, program: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "tritonclient" in program:
        pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    exec(compile(of_server(program, server), str(PAGE), "exec"), {})
    assert "seven" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_commands_of_curl(server: LocalServer, folder: Path) -> None:
    commands = re.findall(r"^    (curl .*)$", PAGE.read_text(), flags=re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        done = subprocess.run(
            f"{of_server(command, server)} --silent --fail-with-body", shell=True, capture_output=True, cwd=folder
        )
        assert done.returncode == 0, (command, done.stdout)
        assert done.stdout.startswith(b"{") or (folder / "drawn.png").is_file(), command


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_key_is_made_and_let_in(folder: Path) -> None:
    from pipelines.serving.keys import read_keys

    lines = re.findall(r"^    ((?:KEY|printf).*)$", PAGE.read_text(), flags=re.MULTILINE)
    script = "; ".join([*lines, "printf %s $KEY"])
    key = subprocess.run(script, shell=True, capture_output=True, cwd=folder, check=True, text=True).stdout
    assert read_keys(str(folder / "keys")).name_of(key) == "ann"
