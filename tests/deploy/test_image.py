"""deploy/Dockerfile against the repository that it is made from: files, versions, users. No image is built here."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
MAKE = shutil.which("make")


def read_instructions(text: str) -> list[tuple[str, str]]:
    """Name and arguments of every instruction of a Dockerfile, its lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, " ".join(rest.split())) for name, rest in (line.split(maxsplit=1) for line in joined.splitlines())]


def test_a_dockerfile_is_read() -> None:
    text = "# made of\nFROM a:1 # b\n\nRUN one \\\n    && two\nUSER 3\n"
    assert read_instructions(text) == [("FROM", "a:1 # b"), ("RUN", "one && two"), ("USER", "3")]


INSTRUCTIONS = read_instructions((REPOSITORY / "deploy/Dockerfile").read_text())
RUNS = [arguments for name, arguments in INSTRUCTIONS if name == "RUN"]
SETTINGS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
CLUSTER = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())


def one(name: str) -> str:
    """The arguments of the only instruction of a name."""
    (arguments,) = (arguments for found, arguments in INSTRUCTIONS if found == name)
    return arguments


def locked(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)", (REPOSITORY / "requirements.lock").read_text(), flags=re.M)
    return found[1]


# Files.


def test_all_that_is_copied_is_there_and_reaches_the_builder() -> None:
    ignored, *rules = [
        line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    reaches = {rule[1:] for rule in rules if rule.startswith("!")}
    assert ignored == "*"
    copied = [arguments.split()[:-1] for name, arguments in INSTRUCTIONS if name == "COPY"]
    assert {source for sources in copied for source in sources} == reaches
    assert all((REPOSITORY / name).exists() for name in reaches)


def test_all_packages_are_in_it() -> None:
    packages = SETTINGS["tool"]["setuptools"]["packages"]
    copied = {arguments.split()[0] for name, arguments in INSTRUCTIONS if name == "COPY"}
    assert {pattern.removesuffix("*") for pattern in packages["find"]["include"]} <= copied


# Versions.


def test_python_is_that_of_the_lock() -> None:
    version = re.match(r"python:(\d+\.\d+)-slim", one("FROM"))[1]
    assert f"--python-version {version} " in MAKEFILE
    assert PROJECT["requires-python"] == f">={version}"


def test_the_packages_are_those_of_the_lock_with_their_hashes() -> None:
    (sync,) = (run for run in RUNS if "pip sync" in run)
    assert sync.endswith("uv pip sync --system --no-cache --compile-bytecode --require-hashes requirements.lock")
    assert "pip sync --quiet --compile-bytecode" in MAKEFILE


def test_ray_is_the_same_everywhere() -> None:
    version = locked("ray")
    assert f"ray[data,serve,train]=={version}" in PROJECT["dependencies"]
    for job in ("label", "train"):
        manifest = yaml.safe_load((REPOSITORY / f"deploy/rayjob-{job}.yaml").read_text())
        assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == version


def test_the_image_has_one_name() -> None:
    image = f"maskrcnn-ray:{PROJECT['version']}"
    assert f"\nIMAGE ?= {image}\n" in MAKEFILE
    assert CLUSTER["docker"]["image"] == f"YOUR_REGISTRY/{image}"
    for job in ("label", "train"):
        assert f"image: &image YOUR_REGISTRY/{image}\n" in (REPOSITORY / f"deploy/rayjob-{job}.yaml").read_text()


# What it proves, and who it is.


def test_the_last_step_imports_modules_that_are_there() -> None:
    (code,) = re.findall(r'python -c "([^"]*)"', RUNS[-1])
    names = [alias.name for node in ast.parse(code).body if isinstance(node, ast.Import) for alias in node.names]
    assert {"jobs.label", "jobs.train", "numba"} <= set(names)
    assert all(find_spec(name) for name in names)


def test_the_user_is_no_root_and_may_read_the_token_of_cluster_yaml() -> None:
    user = one("USER")
    (makes_user,) = (run for run in RUNS if run.startswith("useradd"))
    assert int(user) > 0
    assert f"--uid {user} " in makes_user
    assert makes_user.split(" && ")[0].endswith(" ray")
    (place,) = CLUSTER["file_mounts"]
    assert Path(place).parent == Path("/home/ray/.ray")
    assert "/home/ray/.ray" in makes_user
    assert [name for name, _ in INSTRUCTIONS].index("USER") < len(INSTRUCTIONS) - 1  # the imports are that user's


def test_it_has_the_programs_that_the_head_of_ray_up_needs() -> None:
    assert {"openssh-client", "rsync", "gcc", "libc6-dev"} <= set(RUNS[0].split())


# make image.


def make_image(programs: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`make image` where only these programs are found, also where this is a test that `make` runs."""
    outer = {"MAKELEVEL", "MAKEFLAGS", "MFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in outer} | {"PATH": str(programs)}
    return subprocess.run(
        [str(MAKE), "image", *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(("present", "used"), [(["docker", "podman"], "docker"), (["podman"], "podman")])
def test_make_image_takes_docker_or_podman(tmp_path: Path, present: list[str], used: str) -> None:
    for name in present:
        program = tmp_path / name
        program.write_text(f'#!/bin/bash\necho {name} "$@"\n')
        program.chmod(0o755)
    done = make_image(tmp_path, "IMAGE=registry/name:2")
    assert done.stdout.split() == [
        *(used, "build", "--platform", "linux/amd64", "--file", "deploy/Dockerfile"),
        *("--tag", "registry/name:2", "."),
    ]


def test_make_image_says_what_is_missing(tmp_path: Path) -> None:
    done = make_image(tmp_path)
    assert done.returncode != 0
    assert "error: neither docker nor podman is here to build maskrcnn-ray:" in done.stderr


def test_python_runs_the_locked_packages_here_too() -> None:
    """`uv pip sync` as in the image: nothing to do, since the tests run with the same lock."""
    command = [sys.executable, "-m", "uv", "pip", "sync", "--dry-run", "--offline", "--require-hashes"]
    done = subprocess.run(
        [*command, "--python", sys.executable, "requirements.lock"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert "Would make no changes" in done.stderr, done.stderr
