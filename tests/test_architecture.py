"""The import rules, by syntax tree: jobs -> pipelines -> maskrcnn_core, and an order inside the core.

    errors, config, structures <- kernels <- cpu_kernels <- geometry <- data, model, weights
        <- training, inference, evaluation, export, draw <- report

Packages of one place in that order may use each other only where `SAME_LAYER` says so.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("maskrcnn_core", "pipelines", "jobs")

MAY_IMPORT = {"maskrcnn_core": {"maskrcnn_core"}, "pipelines": {"maskrcnn_core", "pipelines"}, "jobs": set(PACKAGES)}
FORBIDDEN_OUTSIDE = {
    "maskrcnn_core": {"ray", "argparse", "jsonargparse", "rich", "unittest"},
    "pipelines": {"argparse", "jsonargparse", "rich", "click", "typer", "unittest"},
    "jobs": {"unittest"},  # nothing is patched outside of tests
}
RUN_CONFIGS = {file.stem for file in (REPOSITORY / "maskrcnn_core").glob("*_config.py")}
CORE_LAYERS = (
    {"errors", "printable", "category_names", "config_checks", "config", "structures"},
    RUN_CONFIGS,
    {"kernels"},
    {"cpu_kernels"},  # they share the switch
    {"boxes", "masks", "run_lengths", "compressed_runs", "keypoints", "category_names"},
    {"data", "model", "weights"},
    {"training", "inference", "evaluation", "export", "draw", "draw_keypoints"},
    {"report"},
)
SAME_LAYER = {
    ("config_checks", "errors"),
    ("category_names", "errors"),
    ("config_checks", "printable"),
    ("config", "config_checks"),
    *((job, shared) for job in RUN_CONFIGS for shared in ("cluster_config", "storage_config") if job != shared),
    ("evaluate_config", "report_config"),
    ("evaluate_config", "label_config"),  # from a checkpoint: label, then score
    ("structures", "errors"),
    ("masks", "boxes"),
    ("keypoints", "boxes"),
    ("evaluation", "inference"),  # the label record
    ("export", "inference"),  # the label record
    ("draw", "inference"),  # the label record
    ("draw", "draw_keypoints"),
    ("inference", "draw"),  # a result draws itself
    ("weights", "model"),  # a checkpoint names its model
    ("model", "weights"),  # a trunk's ImageNet weights, translated
}
VAGUE_NAMES = {"utils", "util", "common", "helpers", "base", "misc", "engine", "core"}


def core_layer(name: str) -> int | None:
    return next((index for index, layer in enumerate(CORE_LAYERS) if name in layer), None)


def imported_modules(path: str, tree: ast.Module) -> list[tuple[int, str]]:
    """Line and absolute dotted name of everything imported, also inside functions."""
    package = path.removesuffix(".py").removesuffix("/__init__").split("/")
    is_package = path.endswith("__init__.py")
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + is_package] if node.level else []
            origin = ".".join([*parent, *([node.module] if node.module else [])])
            # `from maskrcnn_core import model` imports maskrcnn_core.model; a function's name does no harm here.
            found += [(node.lineno, f"{origin}.{alias.name}") for alias in node.names]
    return found


def core_violation(path: str, name: str) -> str | None:
    """Why a core file may not import a core module, or None."""
    here, there = path.split("/")[1].removesuffix(".py"), [*name.split("."), ""][1]
    own, other = core_layer(here), core_layer(there)
    if here == there or own is None or other is None:
        return None
    if other < own or (here, there) in SAME_LAYER:
        return None
    return f"maskrcnn_core.{here} may not import maskrcnn_core.{there}"


def violations(path: str, source: str) -> list[str]:
    """Broken rules of one source file, each with its line. `path` is relative to the repository."""
    tree = ast.parse(source)
    package = path.split("/")[0]
    messages = []
    for line, name in imported_modules(path, tree):
        root = name.split(".")[0]
        if (root in PACKAGES and root not in MAY_IMPORT[package]) or root in FORBIDDEN_OUTSIDE[package]:
            messages.append(f"{path}:{line}: {package} may not import {root}")
        elif root == package == "maskrcnn_core" and (reason := core_violation(path, name)):
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


def source_files() -> list[str]:
    return sorted(
        str(file.relative_to(REPOSITORY)) for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")
    )


def test_every_file_keeps_the_rules() -> None:
    files = source_files()
    assert {file.split("/")[0] for file in files} == set(PACKAGES)
    found = [message for file in files for message in violations(file, (REPOSITORY / file).read_text())]
    assert not found, "\n".join(found)


def test_every_core_module_has_a_place_in_the_order() -> None:
    names = {file.split("/")[1].removesuffix(".py") for file in source_files() if file.startswith("maskrcnn_core/")}
    assert {name for name in names - {"__init__"} if core_layer(name) is None} == set()


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
        ("maskrcnn_core/boxes.py", "import maskrcnn_core.model.rpn", "boxes may not import maskrcnn_core.model"),
        (
            "maskrcnn_core/data/coco.py",
            "from maskrcnn_core.model import fpn",
            "data may not import maskrcnn_core.model",
        ),
        ("maskrcnn_core/data/coco.py", "from maskrcnn_core import model", "data may not import maskrcnn_core.model"),
        ("maskrcnn_core/data/coco.py", "from ..training import step", "data may not import maskrcnn_core.training"),
        ("maskrcnn_core/data/__init__.py", "from ..training import step", "data may not import maskrcnn_core.training"),
        ("maskrcnn_core/model/utils.py", "", "a name that says nothing: utils"),
        ("maskrcnn_core/common/boxes.py", "", "a name that says nothing: common"),
        ("maskrcnn_core/boxes.py", "print(1)", "may not print"),
        ("pipelines/training.py", "import jobs.train", "may not import jobs"),
        ("pipelines/training.py", "import argparse", "may not import argparse"),
        ("pipelines/training.py", "from unittest.mock import patch", "may not import unittest"),
        ("pipelines/training.py", "def f():\n    print(1)", ":2: pipelines may not print"),
        ("pipelines/training.py", "import sys\nx = sys.argv", ":2: pipelines may not read sys.argv"),
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
            "maskrcnn_core/data/coco.py",
            "from maskrcnn_core.boxes import area\nfrom .decode import decode\nimport torch",
        ),
        ("maskrcnn_core/evaluation/coco.py", "from maskrcnn_core.inference.records import ImageRecord"),
        ("maskrcnn_core/training/step.py", "from maskrcnn_core.model import build"),
        (
            "pipelines/training.py",
            "import ray\nfrom maskrcnn_core.train_config import TrainRun\nfrom pipelines import storage",
        ),
        ("jobs/train.py", "from pipelines.training import train\nfrom jobs.cli import run_job\nprint(1)"),
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
    names = [f"pipelines.benchmark_{name}" for name in ("detection", "stages", "encoding", "training")]
    command = [sys.executable, "-c", _WITHOUT_RAY, "maskrcnn_core", "jobs.benchmark", *names]
    subprocess.run(command, check=True, cwd=REPOSITORY)
