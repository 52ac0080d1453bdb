"""A device with a bundle that serves there, deployed for real once a session; each test gets a copy of its folder."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from athe_export.deploy.own_wheel import repacked
from tests.conftest import ROOT
from tests.sshd import Device, device
from tests.tools import Outcome, edit_manifest, environment, listing

OLD = ROOT / "tests/bundles/v1/tiny"  # for ONNX alone, gated, and no build is needed
PYTHON = str(getattr(sys, "_base_executable", sys.executable))  # of this very version, so that wheels of ours fit


@dataclass(frozen=True)
class Deployer:
    """`athe-export deploy` of the installed wheel, to a device."""

    program: Path
    device: Device

    def __call__(self, *arguments: object, **variables: str) -> Outcome:
        done = subprocess.run(
            self.line(*arguments), capture_output=True, text=True, env=self.environment(**variables), check=False
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def line(self, *arguments: object) -> list[str]:
        options = ("--ssh-config", self.device.config, "--python", PYTHON)
        return [str(a) for a in (self.program, "deploy", *arguments, *options)]

    def environment(self, **variables: str) -> dict[str, str]:
        return {k: v for k, v in environment().items() if k != "PYTHONPATH"} | variables

    def serving(self) -> dict[str, Any]:
        """What `current` leads to and its files, once its own runtime has verified it there."""
        folder = self.device.folder
        done = subprocess.run(
            [folder / "athe-export", "verify", folder / "current", "--json"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return {"version": (folder / "current").readlink().as_posix(), "files": listing(folder / "current")}

    def still(self) -> dict[str, Any]:
        """The same without running it; what a failed deployment must leave as it is, down to the names in the folder."""
        folder = self.device.folder
        names = sorted(p.relative_to(folder).as_posix() for p in (*folder.iterdir(), *(folder / "versions").iterdir()))
        links = {n: (folder / n).readlink().as_posix() for n in names if (folder / n).is_symlink()}
        return {"names": names, "links": links, "files": listing(folder / "versions")}


def needed_by(name: str, extra: str) -> dict[str, importlib.metadata.Distribution]:
    """An installed package and all that it needs here."""
    found: dict[str, importlib.metadata.Distribution] = {}
    ahead = [(name, extra)]
    while ahead:
        name, extra = ahead.pop()
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            for needed in map(Requirement, found[name].requires or []):
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    ahead.append((needed.name, ""))
    return found


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What athe-export[onnx] needs, as wheels made of what is installed here: pip needs no index."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    for name, distribution in needed_by("athe-export", "onnx").items():
        if name != "athe-export":
            repacked(distribution, folder)
    return folder


@pytest.fixture(scope="session")
def deployed(installed: Path, wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployer]:
    """A device with OLD on it, whose pip has the wheels of this machine for an index."""
    with device(tmp_path_factory.mktemp("deployed") / "home", index(wheelhouse)) as made:
        deploy = Deployer(installed / "bin" / "athe-export", made)
        done = deploy(OLD, made.destination)
        assert done.code == 0, done.err
        yield deploy


def index(*folders: Path) -> dict[str, str]:
    """What makes the wheels in these folders pip's index."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": " ".join(map(str, folders))}


def furnish(folder: Path, source: Path) -> None:
    """Copies what serves in another device's folder; its runtimes are linked, being large."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name.startswith("venv-"):
            (folder / path.name).symlink_to(path)
        elif path.is_dir() and not path.is_symlink():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copy2(path, folder / path.name, follow_symlinks=False)


@pytest.fixture
def deploy(deployed: Deployer, tmp_path: Path, wheelhouse: Path) -> Iterator[Deployer]:
    """A device of this test's own, on which OLD serves."""
    with device(tmp_path / "home", index(wheelhouse)) as made:
        furnish(made.folder, deployed.device.folder)
        yield Deployer(deployed.program, made)


@pytest.fixture
def renamed(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a bundle that differs from OLD in its name, and so in its digest."""

    def make(name: str) -> Path:
        copy = tmp_path / name
        shutil.copytree(OLD, copy)
        edit_manifest(copy, lambda manifest: manifest.update(name=name))
        return copy

    return make
