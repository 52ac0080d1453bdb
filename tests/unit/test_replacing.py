"""What a build may replace, and what is left where the exchange of old and new is disturbed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from athe_export.bundle.manifest import MANIFEST, MANIFEST_DIGEST
from athe_export.bundle.writer import staged_bundle
from athe_export.errors import EnvironmentFailure
from tests.tools import edit_manifest, environment, label_of, python, write_bundle

ROOT = Path(__file__).parents[2]
DIGEST = "0" * 64 + f"  {MANIFEST}\n"


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A bundle that is to be replaced."""
    write_bundle(tmp_path / "out" / "bundle", "old")
    return tmp_path / "out" / "bundle"


@pytest.mark.parametrize(
    "files",
    [
        {MANIFEST: '{"name": "a web app", "start_url": "/"}', "index.html": "<html>"},
        {MANIFEST: '{"schema_version": 1}'},
        {MANIFEST: '{"name": "a web app"}', MANIFEST_DIGEST: DIGEST},
        {MANIFEST: '{"schema_version": "1.0"}', MANIFEST_DIGEST: DIGEST},
        {MANIFEST: '["schema_version"]', MANIFEST_DIGEST: DIGEST},
        {"data.csv": "1,2", MANIFEST_DIGEST: DIGEST.replace(MANIFEST, "data.csv")},
    ],
    ids=["web app", "no digest", "digested web app", "version as text", "a list", "digests of data"],
)
def test_a_folder_with_a_manifest_of_something_else_is_left_alone(tmp_path: Path, files: dict[str, str]) -> None:
    (tmp_path / "app").mkdir()
    for name, text in files.items():
        (tmp_path / "app" / name).write_text(text)
    with pytest.raises(EnvironmentFailure, match="is not a bundle; it is left alone"):
        write_bundle(tmp_path / "app", "new")
    assert {p.name: p.read_text() for p in (tmp_path / "app").iterdir()} == files


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit_manifest(folder, lambda m: m.update(schema_version=99)),
        lambda folder: (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:100]),
        lambda folder: (folder / MANIFEST).write_bytes(b""),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST_DIGEST).write_text(""),
        lambda folder: (folder / "labels.txt").unlink(),
    ],
    ids=["newer version", "truncated", "empty", "no manifest", "empty digest", "file missing"],
)
def test_a_bundle_of_another_version_or_a_damaged_one_is_replaced(output: Path, change: Callable[[Path], object]) -> None:
    change(output)
    write_bundle(output, "new")
    assert label_of(output) == "new"


# Replaces a bundle where the kernel cannot exchange two folders in one step, and is killed before the nth rename.
_RENAME = f"""
import ctypes, os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from athe_export.bundle.writer import staged_bundle
from tests.tools import fill, label_of, write_bundle
ctypes.CDLL = lambda *arguments, **options: object()  # a C library without renameat2
left, rename = int(sys.argv[2]), os.rename
def counted(*arguments):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*arguments)
os.rename = counted
with staged_bundle(Path(sys.argv[1])) as staged:
    fill(staged, "new")
    staged.promote()
"""


@pytest.mark.parametrize(("nth", "survivor"), [(1, "old"), (2, "old"), (3, "new")])
def test_a_kill_before_any_rename_is_mended_by_the_next_build(output: Path, nth: int, survivor: str) -> None:
    assert python(_RENAME, output, nth).returncode == -9
    with pytest.raises(RuntimeError), staged_bundle(output):
        raise RuntimeError
    assert label_of(output) == survivor
    assert _names(output.parent) == ["bundle"]
    assert python(_RENAME, output, 4).returncode == 0, "there are three renames, and the next build makes them all"
    assert label_of(output) == "new"
    assert _names(output.parent) == ["bundle"]


# Replaces a bundle in which something is mounted, so that the old one cannot be removed.
_STUCK = f"""
import subprocess, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from athe_export.bundle.reader import open_bundle
from athe_export.bundle.writer import staged_bundle
from tests.tools import fill, label_of, write_bundle
output = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "none", output / "onnx"], check=True)
with staged_bundle(output) as staged:
    fill(staged, "new")
    staged.promote()
open_bundle(output).check()
print(sorted(p.name for p in output.parent.iterdir() if not p.name.endswith(".lock")))
"""


def test_an_old_bundle_that_cannot_be_removed_is_left_to_the_next_build(output: Path) -> None:
    allowed = shutil.which("unshare") and subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False)
    if not allowed or allowed.returncode:
        pytest.skip("user namespaces are not permitted here, so nothing can be mounted")
    line = ["unshare", "-Urm", sys.executable, "-c", _STUCK, str(output)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['.bundle.staging', 'bundle']\n"
    write_bundle(output, "newer")
    assert label_of(output) == "newer"
    assert _names(output.parent) == ["bundle"]
