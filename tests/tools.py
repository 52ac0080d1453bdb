"""What several test files share: running the command line, and editing a bundle so that its digests still match."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from athe_export.bundle.manifest import MANIFEST, MANIFEST_DIGEST, Manifest, parse_manifest
from athe_export.bundle.reader import open_bundle
from athe_export.bundle.writer import StagedBundle, staged_bundle
from athe_export.sharing import as_whole

ERROR_FIELDS = {"code", "kind", "message", "where", "remedy", "files"}

# Refuses to find some packages, as on a machine that does not have them.
_BLOCK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout; anything beside it is an error."""
        return json.loads(self.out)


def command(*arguments: object, blocked: Iterable[str] = (), cwd: Path | None = None) -> Outcome:
    """`athe-export ARGUMENTS` in a process of its own, where the packages in `blocked` cannot be imported."""
    run = "from athe_export.cli import main; main()"
    done = python(_BLOCK.format(blocked=set(blocked)) + run, *arguments, cwd=cwd)
    return Outcome(done.returncode, done.stdout, done.stderr)


def python(code: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own."""
    line = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=environment(), check=False)


def blocked_python(code: str, blocked: Iterable[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python code in a process where the packages in `blocked` cannot be imported."""
    return python(_BLOCK.format(blocked=set(blocked)) + code, *arguments)


def output_of(*line: object, cwd: Path | None = None) -> str:
    """What a program that must succeed writes to stdout; nothing points it to the checkout."""
    surroundings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([str(a) for a in line], cwd=cwd, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    """The surroundings of a subprocess: one thread, since tests run beside each other, and no colours."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}


def cli(*arguments: object) -> Outcome:
    """`athe-export ARGUMENTS` through the real entry point, in this process."""
    from athe_export.cli import _run

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = _run([str(a) for a in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def refused(code: int, kind: str, *arguments: object) -> dict[str, Any]:
    """Runs a command that must fail, as text and with --json, and gives the contracted error object."""
    shown = cli(*arguments)
    require_one_message(shown, code)
    assert shown.out == ""
    return error_of(cli(*arguments, "--json"), code, kind)


def require_one_message(outcome: Outcome, code: int) -> None:
    """What, where and what next on stderr, once, and nothing that looks like a crash."""
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert outcome.err.count("error: ") == 1
    assert outcome.err.count("\n  next: ") == 1
    assert "our bug" not in outcome.err


def error_of(outcome: Outcome, code: int, kind: str) -> dict[str, Any]:
    """The error object of the one document on stdout, its fields as contracted."""
    assert outcome.code == code, outcome.err
    error = outcome.document["error"]
    assert set(error) >= ERROR_FIELDS
    assert (error["code"], error["kind"]) == (code, kind)
    assert error["message"] and error["remedy"]
    assert all(set(f) == {"path", "problem"} for f in error["files"])
    return error


def listing(folder: Path) -> dict[str, str]:
    """Every file below a folder with its digest; the empty lock file that guards an output is not counted."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.endswith(".lock"))
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest's content and renews its digest, as someone who wants to be believed would."""
    content = json.loads((bundle / MANIFEST).read_text())
    change(content)
    write_manifest(bundle, json.dumps(content))


def write_manifest(bundle: Path, text: str) -> None:
    """Writes the manifest as given and a digest that fits."""
    (bundle / MANIFEST).write_text(text)
    (bundle / MANIFEST_DIGEST).write_text(hashlib.sha256(text.encode()).hexdigest() + f"  {MANIFEST}\n")


def graph_content(bundle: Path, name: str) -> bytes:
    """A graph as an engine is given it, by the name that its file has where it is stored whole."""
    opened = open_bundle(bundle)
    return opened.graph(next(g for g in opened.manifest.graphs if as_whole(g).file == name))


def store_whole(bundle: Path) -> None:
    """Stores every graph whole, as bundles were before graphs shared their weights."""
    opened = open_bundle(bundle)
    whole = {g.file: (as_whole(g), opened.graph(g)) for g in opened.manifest.graphs if g.borrows}

    def rewrite(manifest: dict[str, Any]) -> None:
        for listed in (*manifest["files"], *manifest["graphs"]):
            entry, _ = whole.get(listed.get("path") or listed["file"], (None, b""))
            if entry is not None:
                listed.update({"path" if "path" in listed else "file": entry.file})
                listed.update(bytes=entry.bytes, sha256=entry.sha256)
        for graph in manifest["graphs"]:
            graph.pop("borrows")

    for part, (entry, content) in whole.items():
        (bundle / part).unlink()
        (bundle / entry.file).write_bytes(content)
    edit_manifest(bundle, rewrite)


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Puts other bytes in a listed file's place and renews every digest of it; a graph's, where all are stored whole."""
    if name.startswith(("onnx/", "litert/")) and any(g.borrows for g in open_bundle(bundle).manifest.graphs):
        store_whole(bundle)
    (bundle / name).write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def renew(manifest: dict[str, Any]) -> None:
        for listed in [f for f in manifest["files"] if f["path"] == name]:
            listed.update(entry)
        for graph in [g for g in manifest["graphs"] if g["file"] == name]:
            graph.update(entry)

    edit_manifest(bundle, renew)


def edit_arrays(bundle: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the arrays of golden.npz or reference.npz and renews the digests."""
    with np.load(bundle / name) as archive:
        arrays: dict[str, Any] = dict(archive)
    change(arrays)
    with (bundle / name).open("wb") as file:
        np.savez(file, **arrays)
    replace_file(bundle, name, (bundle / name).read_bytes())


def plain_manifest(changes: Mapping[str, Any] | None = None) -> Manifest:
    """A manifest of one branch without a router, consistent in itself; graph bytes are not looked at here."""
    content: dict[str, Any] = {
        "schema_version": 1,
        "name": "plain",
        "recipe": {"text": "", "sha256": "a" * 64},
        "checkpoint": {"sha256": None, "trained": False},
        "dataset": {"name": "shapes", "sha256": "b" * 64},
        "calibration": {},
        "tools": {"python": "3.11"},
        "preprocessing": {
            "source_size": 32, "resize": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "sizes": [32],
            "golden_sha256": "c" * 64,
        },
        "router": None,
        "branches": [
            {"name": "only", "heads": 3, "prune": [], "scorer": "linear", "head_indices": None,
             "calibration_images": 8, "topped_up": []},
        ],
        "graphs": [],
        "golden": {"tolerance": {"int8": 0.1, "fp32": 0.001}},
        "gate": {"split": "test", "limits": {"max_top1_drop_pp": 1, "min_agreement": 1, "min_router_agreement": 1,
                                             "confidence": 0.95}},
        "verdict": "not_gated",
        "parity": None,
        "notes": [],
        "files": [],
    }  # fmt: skip
    graph = b"graph"
    digest = hashlib.sha256(graph).hexdigest()
    shapes = {
        "inputs": [{"name": "image", "shape": [1, 3, 32, 32], "dtype": "float32"}],
        "outputs": [{"name": "logits", "shape": [1, 100], "dtype": "float32"}],
    }
    content["graphs"] = [
        {"role": "only", "target": "onnx", "precision": "int8", "file": "onnx/only.onnx", "bytes": len(graph),
         "sha256": digest, **shapes, "mmacs": 1.0, "int8_ops": 1, "float_ops": 0, "float_op_names": []}
    ]  # fmt: skip
    content["files"] = [{"path": "onnx/only.onnx", "role": "graph", "bytes": len(graph), "sha256": digest}]
    return parse_manifest(json.dumps(content | dict(changes or {})), "plain")


def fill(staged: StagedBundle, label: str = "a label") -> None:
    """Writes a complete bundle of plain bytes: what the format's own code needs, no graph that could run."""
    staged.add("onnx/only.onnx", "graph", b"graph")
    staged.add("labels.txt", "labels", f"{label}\n".encode())
    staged.add("reference.npz", "reference", b"arrays", optional=True)
    staged.finish(plain_manifest())


def write_bundle(output: Path, label: str = "a label") -> None:
    """Stages such a bundle and puts it in place."""
    with staged_bundle(output) as staged:
        fill(staged, label)
        staged.promote()


def label_of(output: Path) -> str:
    """The label that `write_bundle` wrote, from a bundle that is whole."""
    bundle = open_bundle(output)
    bundle.check()
    return bundle.read("labels.txt").decode().strip()
