"""A build end to end on a tiny real model."""

from __future__ import annotations

from pathlib import Path

from athe_export.bundle.reader import open_bundle


def test_a_built_bundle_is_complete_and_gated(built: Path) -> None:
    opened = open_bundle(built)
    opened.check()
    assert opened.manifest.verdict == "pass"
    assert {g.role for g in opened.manifest.graphs} == {"router", "simple", "complex"}
    assert not list(built.parent.glob(".*.staging"))
