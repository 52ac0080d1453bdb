"""Writing a bundle: what is at the output stays whole, whatever goes wrong on the way to the next one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from athe_export.bundle.manifest import MANIFEST
from athe_export.bundle.reader import open_bundle
from athe_export.bundle.writer import staged_bundle
from athe_export.errors import EnvironmentFailure
from tests.tools import environment, fill, label_of, listing, python, write_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A bundle that is to be replaced."""
    write_bundle(tmp_path / "out" / "bundle", "old")
    return tmp_path / "out" / "bundle"


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_a_bundle_appears_complete_and_alone(tmp_path: Path) -> None:
    write_bundle(tmp_path / "deep" / "down" / "bundle")
    assert label_of(tmp_path / "deep" / "down" / "bundle") == "a label"
    assert _names(tmp_path / "deep" / "down") == ["bundle"]


def test_nothing_is_at_the_output_before_it_is_promoted(tmp_path: Path) -> None:
    with staged_bundle(tmp_path / "bundle") as staged:
        fill(staged)
        open_bundle(staged.folder).check()
        assert not (tmp_path / "bundle").exists()


def test_a_new_bundle_replaces_the_old_one_whole(output: Path) -> None:
    (output / "left from the old one").write_text("")
    write_bundle(output, "new")
    assert label_of(output) == "new"
    assert _names(output.parent) == ["bundle"]


def test_an_error_leaves_the_old_bundle_and_nothing_else(output: Path) -> None:
    before = listing(output.parent)
    with pytest.raises(RuntimeError, match="on the way"), staged_bundle(output) as staged:
        fill(staged, "new")
        raise RuntimeError("on the way")
    assert listing(output.parent) == before
    assert _names(output.parent) == ["bundle"]


def test_a_staging_folder_that_is_to_be_kept_is_kept_beside_the_old_bundle(output: Path) -> None:
    with staged_bundle(output) as staged:
        fill(staged, "new")
        staged.keep()
    assert label_of(output) == "old"
    assert label_of(staged.folder) == "new"
    assert staged.folder.parent == output.parent


def test_leftovers_of_a_killed_build_are_cleared(output: Path) -> None:
    leftover = output.with_name(".bundle.staging")
    (leftover / "onnx").mkdir(parents=True)
    (leftover / "onnx" / "half.onnx").write_bytes(b"half")
    with staged_bundle(output) as staged:
        assert staged.folder == leftover
        assert _names(leftover) == []
        fill(staged, "new")
        staged.promote()
    assert label_of(output) == "new"
    assert _names(output.parent) == ["bundle"]


def test_a_kill_between_two_renames_is_mended_by_the_next_build(output: Path) -> None:
    # where the kernel cannot exchange two folders in one step, the old bundle is set aside for a moment
    output.rename(output.with_name(".bundle.previous"))
    with pytest.raises(RuntimeError), staged_bundle(output):
        raise RuntimeError
    assert label_of(output) == "old"
    assert _names(output.parent) == ["bundle"]


_HOLD = """
import sys
from pathlib import Path
from athe_export.bundle.writer import staged_bundle
with staged_bundle(Path(sys.argv[1])) as staged:
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_build_of_the_same_output_at_the_same_time_is_told_so(output: Path) -> None:
    line = [sys.executable, "-c", _HOLD, str(output)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()) as first:
        assert first.stdin is not None and first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(EnvironmentFailure, match="another build is writing this output now") as error,
            staged_bundle(output),
        ):
            pass
        assert error.value.where == str(output)
        assert output.with_name(".bundle.staging").is_dir(), "the first build's folder was taken from it"
        write_bundle(output.with_name("other"))
        first.stdin.close()
    assert label_of(output) == "old"
    write_bundle(output, "new")
    assert label_of(output) == "new"


def test_an_output_that_is_not_a_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(EnvironmentFailure, match="is not a bundle; it is left alone"), staged_bundle(tmp_path / "thesis"):
        pass
    assert listing(tmp_path).keys() == {"thesis/chapter1.txt"}


def test_an_output_that_is_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("notes")
    with pytest.raises(EnvironmentFailure, match="is not a bundle"), staged_bundle(tmp_path / "notes"):
        pass
    assert (tmp_path / "notes").read_text() == "notes"


def test_an_output_that_has_no_name_is_refused() -> None:
    with pytest.raises(EnvironmentFailure, match="is not a bundle") as error, staged_bundle(Path("/")):
        pass
    assert error.value.where == "/"


def test_an_empty_folder_may_become_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    write_bundle(tmp_path / "bundle")
    assert label_of(tmp_path / "bundle") == "a label"


def test_the_folder_one_stands_in_may_become_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_bundle(Path())
    assert label_of(tmp_path / "here") == "a label"
    assert _names(tmp_path) == ["here"]


def test_a_link_to_a_bundle_stays_a_link_and_its_bundle_is_replaced(output: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(output)
    write_bundle(tmp_path / "current", "new")
    assert (tmp_path / "current").is_symlink()
    assert label_of(output) == "new"
    assert _names(output.parent) == ["bundle"]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailure, match="cannot be written") as error, staged_bundle(tmp_path / "file" / "bundle"):
        pass
    assert str(tmp_path / "file") in str(error.value.where)
    assert "-o" in error.value.remedy


# Writes bundles with larger and larger files until the place has no room, and says how that ended.
_GROW = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from athe_export.bundle.writer import staged_bundle
from athe_export.errors import EnvironmentFailure
from tests.tools import fill, label_of, write_bundle
output = Path(sys.argv[1])
with staged_bundle(output) as staged:
    fill(staged, "old")
    staged.promote()
if len(sys.argv) > 2:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with staged_bundle(output) as staged:
        fill(staged, "new")
        staged.add("large.bin", "graph", bytes(1 << 20))
except EnvironmentFailure as error:
    print(f"{{error.what}} | {{error.where}} | {{error.remedy}}")
print(sorted(p.name for p in output.parent.iterdir() if not p.name.endswith(".lock")))
from athe_export.bundle.reader import open_bundle
open_bundle(output).check()
print(open_bundle(output).read("labels.txt").decode().strip())
"""


def test_a_full_disk_is_said_and_leaves_the_old_bundle(tmp_path: Path) -> None:
    """A real one: a small tmpfs mounted in a namespace of its own."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("user namespaces are not permitted here, so no small disk can be mounted")
    mount = f'mount -t tmpfs -o size=256k none "{tmp_path}" && exec "$@"'
    line = ["unshare", "-Urm", "sh", "-c", mount, "sh", sys.executable, "-c", _GROW, str(tmp_path / "bundle")]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    said, names, label = done.stdout.splitlines()
    assert said.startswith("cannot be written: No space left on device | ")
    assert "large.bin" in said or ".staging" in said
    assert "free some space" in said
    assert (names, label) == ("['bundle']", "old")


def test_a_file_size_limit_is_said_and_leaves_the_old_bundle(tmp_path: Path) -> None:
    done = python(_GROW, tmp_path / "bundle", "limited")
    assert done.returncode == 0, done.stderr
    said, names, label = done.stdout.splitlines()
    assert said.startswith("cannot be written: File too large | ")
    assert "ulimit -f" in said
    assert (names, label) == ("['bundle']", "old")


def test_the_manifest_lists_exactly_what_was_added(output: Path) -> None:
    listed = {f.path for f in open_bundle(output).manifest.files}
    assert listed | {MANIFEST, "manifest.sha256"} == set(listing(output))
    assert {f.path for f in open_bundle(output).manifest.files if f.optional} == {"reference.npz"}
