"""The import rules, by syntax tree, without exceptions: jobs -> pipelines -> maskrcnn_core, and levels inside the two.

`tests/architecture.py` has the levels. A room imports rooms of lower levels, and of its own level as long as nothing
runs in a circle.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import (
    LEVELS,
    PACKAGES,
    REPOSITORY,
    circles,
    floors,
    import_graph,
    imported_names,
    measure,
    module_name,
    room_graph,
    room_of,
    source_files,
    without_shortcuts,
)

MAY_IMPORT = {"maskrcnn_core": {"maskrcnn_core"}, "pipelines": {"maskrcnn_core", "pipelines"}, "jobs": set(PACKAGES)}
FORBIDDEN_OUTSIDE = {
    "maskrcnn_core": {"ray", "argparse", "jsonargparse", "rich"},
    "pipelines": {"argparse", "jsonargparse", "rich", "click", "typer"},
    "jobs": set(),
}
FORBIDDEN_EVERYWHERE = {"unittest", "pytest", "tests"}
# What commands share. A command imports no other; the demo runs them, and the benchmarks have a folder of their own.
SHARED_BY_COMMANDS = {"alternatives", "cli", "interrupts", "summaries", "terminal"}
ALSO_IMPORTED = {"jobs/demo.py": {"demo_config", "evaluate", "label", "train"}, "jobs/benchmark.py": {"benchmarks"}}
VAGUE_NAMES = {"utils", "util", "common", "helpers", "base", "misc", "engine", "core"}


def level(package: str, room: str) -> int | None:
    return next((number for number, rooms in enumerate(LEVELS[package]) if room in rooms), None)


def climbs(path: str, name: str) -> str | None:
    """Why a file may not import a module of its own package, or None."""
    package = path.split("/")[0]
    here, there = room_of(module_name(path), package), room_of(name, package)
    if package not in LEVELS or here is None or there is None or here == there:
        return None
    own, other = level(package, here), level(package, there)
    if own is None or other is None or other <= own:
        return None
    return f"{package}.{here} may not import {package}.{there}, which is above it"


def imports_command(path: str, name: str) -> str | None:
    """Why a file of `jobs` may not import a module of `jobs`, or None."""
    there = room_of(name, "jobs")
    if not path.startswith("jobs/") or there is None or there in SHARED_BY_COMMANDS | ALSO_IMPORTED.get(path, set()):
        return None
    return (
        f"a command may not import another, jobs.{there}; what they share is in jobs/terminal.py and jobs/summaries.py"
    )


def violations(path: str, source: str) -> list[str]:
    """Broken rules of one source file, each with its line. `path` is relative to the repository."""
    tree = ast.parse(source)
    package = path.split("/")[0]
    messages = []
    for line, name in imported_names(path, tree):
        root = name.split(".")[0]
        if (root in PACKAGES and root not in MAY_IMPORT[package]) or root in FORBIDDEN_OUTSIDE[package]:
            messages.append(f"{path}:{line}: {package} may not import {root}")
        elif root in FORBIDDEN_EVERYWHERE:
            messages.append(f"{path}:{line}: product code may not import {root}")
        elif root == package and (reason := climbs(path, name) or imports_command(path, name)):
            messages.append(f"{path}:{line}: {reason}")
    if package != "jobs":
        messages += [f"{path}:{line}: {package} may not {what}" for line, what in talks_to_the_user(tree)]
    if vague := VAGUE_NAMES & set(path.removesuffix(".py").split("/")):
        messages.append(f"{path}: a name that says nothing: {', '.join(vague)}")
    return messages


def talks_to_the_user(tree: ast.Module) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append((node.lineno, "print"))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.argv":
            found.append((node.lineno, "read sys.argv"))
    return found


def test_every_file_keeps_the_rules() -> None:
    files = source_files()
    assert {file.split("/")[0] for file in files} == set(PACKAGES)
    found = [message for file in files for message in violations(file, (REPOSITORY / file).read_text())]
    assert not found, "\n".join(found)


def test_every_folder_is_a_package() -> None:
    """Else it would not be installed."""
    folders = {parent for file in source_files() for parent in Path(file).parents if parent != Path(".")}
    assert {folder for folder in folders if not (REPOSITORY / folder / "__init__.py").is_file()} == set()


def test_every_room_has_a_level() -> None:
    for package in LEVELS:
        rooms = set(room_graph(import_graph(), package))
        assert {room for room in rooms if level(package, room) is None} == set(), package
        assert {room for rooms_of in LEVELS[package] for room in rooms_of} <= rooms, package


def test_nothing_runs_in_a_circle() -> None:
    graph = import_graph()
    assert circles(graph) == []
    for package in (*LEVELS, "maskrcnn_core.model"):
        assert circles(room_graph(graph, package)) == [], package


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a", "f"}, "f": {"e"}}
    assert circles(graph) == [["b", "c"], ["e", "f"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == 3


def test_shortcuts_are_left_out_of_the_picture() -> None:
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set(), "e": {"d"}}
    assert without_shortcuts(graph) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set(), "e": {"d"}}


def test_the_house_is_measured(tmp_path: Path) -> None:
    (tmp_path / "maskrcnn_core" / "model").mkdir(parents=True)
    (tmp_path / "maskrcnn_core" / "boxes.py").write_text("x = 1\n" * 301)
    (tmp_path / "maskrcnn_core" / "model" / "a.py").write_text("def f():\n" + "    x = 1\n" * 60)
    (tmp_path / "maskrcnn_core" / "model" / "b.py").write_text(
        "from maskrcnn_core import boxes\nimport maskrcnn_core.model.a\n"
    )
    found = measure(tmp_path)
    assert found.rooms["maskrcnn_core"] == (2, 1, 2, 0)
    assert found.rooms["maskrcnn_core.model"] == (2, 1, 2, 0)
    assert found.long_files == [("maskrcnn_core/boxes.py", 301)]
    assert found.long_functions == [("maskrcnn_core/model/a.py", "f", 61)]


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("maskrcnn_core/boxes.py", "import ray", "may not import ray"),
        (
            "maskrcnn_core/boxes.py",
            "def f():\n    from ray.data import Dataset",
            ":2: maskrcnn_core may not import ray",
        ),
        ("maskrcnn_core/boxes.py", "from pipelines import storage", "may not import pipelines"),
        ("maskrcnn_core/boxes.py", "import maskrcnn_core.model.build", "boxes may not import maskrcnn_core.model"),
        (
            "maskrcnn_core/data/decode.py",
            "from maskrcnn_core.model import build",
            "data may not import maskrcnn_core.model",
        ),
        ("maskrcnn_core/data/decode.py", "from maskrcnn_core import model", "data may not import maskrcnn_core.model"),
        ("maskrcnn_core/data/decode.py", "from ..training import step", "data may not import maskrcnn_core.training"),
        ("maskrcnn_core/data/__init__.py", "from ..training import step", "data may not import maskrcnn_core.training"),
        ("maskrcnn_core/model/utils.py", "", "a name that says nothing: utils"),
        ("maskrcnn_core/common/boxes.py", "", "a name that says nothing: common"),
        ("maskrcnn_core/boxes.py", "print(1)", "may not print"),
        ("pipelines/training/run.py", "import jobs.train", "may not import jobs"),
        ("pipelines/training/run.py", "import argparse", "may not import argparse"),
        (
            "pipelines/storage/files.py",
            "from pipelines.training import run",
            "storage may not import",
        ),
        ("pipelines/training/run.py", "from unittest.mock import patch", "product code may not import unittest"),
        ("pipelines/training/run.py", "def f():\n    print(1)", ":2: pipelines may not print"),
        ("pipelines/training/run.py", "import sys\nx = sys.argv", ":2: pipelines may not read sys.argv"),
        (
            "jobs/evaluate.py",
            "def f():\n    from jobs.label import run",
            ":2: a command may not import another, jobs.label",
        ),
        ("jobs/report.py", "from jobs import evaluate", "may not import another, jobs.evaluate"),
        ("jobs/terminal.py", "from jobs import evaluate", "may not import another, jobs.evaluate"),
        ("jobs/benchmarks/speed.py", "import jobs.label", "may not import another, jobs.label"),
        ("jobs/benchmark.py", "import jobs.label", "may not import another, jobs.label"),
    ],
)
def test_a_broken_rule_is_found(path: str, source: str, expected: str) -> None:
    found = violations(path, source)
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "maskrcnn_core/data/decode.py",
            "from maskrcnn_core.boxes import area\nfrom .files import Folder\nimport torch",
        ),
        ("maskrcnn_core/evaluation/coco.py", "from maskrcnn_core.records.labels import ImageRecord"),
        ("maskrcnn_core/training/step.py", "from maskrcnn_core.model import build"),
        (
            "pipelines/training/run.py",
            "import ray\nfrom pipelines.training.config import TrainRun\nfrom pipelines import storage",
        ),
        ("jobs/train.py", "from pipelines.training.run import train\nfrom jobs.cli import run_job\nprint(1)"),
        ("jobs/label.py", "from jobs import terminal"),
        ("jobs/demo.py", "from jobs import evaluate, label, train"),
        ("jobs/benchmark.py", "from jobs.benchmarks import speed"),
    ],
)
def test_what_is_allowed_is_not_reported(path: str, source: str) -> None:
    assert violations(path, source) == []


_WITHOUT_RAY = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ImportError("Ray is not installed here")

sys.meta_path.insert(0, Blocked())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_benchmarks_of_the_core_run_without_ray() -> None:
    names = [f"pipelines.benchmarks.{name}" for name in ("detection", "stages", "encoding", "training")]
    command = [sys.executable, "-c", _WITHOUT_RAY, "maskrcnn_core", "jobs.benchmark", *names]
    subprocess.run(command, check=True, cwd=REPOSITORY)
