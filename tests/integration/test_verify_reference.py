"""`verify` on bundles whose digests fit and whose reference or manifest is wrong: one message and exit code 5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from athe_export.data.source import open_dataset
from athe_export.errors import DatasetError
from tests.tools import edit_arrays, edit_manifest, refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.update(logits=a["logits"][:1]), "1 branches and 100 classes, the bundle 2 and 100"),
        (lambda a: a.update(logits=a["logits"][..., :10]), "2 branches and 10 classes, the bundle 2 and 100"),
        (lambda a: a.update(ids=a["ids"] + 6000), "images that split 'test' does not have"),
        (lambda a: a.update(ids=a["ids"] - 1), "images that split 'test' does not have"),
        (lambda a: a.update(ids=a["ids"].astype(np.float64)), "other types than documented: ids"),
        (lambda a: a.update(labels=a["labels"].astype("U3")), "other types than documented: labels"),
        (lambda a: a.update(logits=a["logits"].astype("U9")), "other types than documented: logits"),
        (lambda a: a.update(scores=a["scores"].astype(np.complex64)), "other types than documented: scores"),
        (lambda a: a.update({k: v[:, :0] if k == "logits" else v[:0] for k, v in a.items()}), "holds no images"),
    ],
    ids=["branches", "classes", "ids beyond", "ids below", "float ids", "text labels", "text logits", "scores", "empty"],
)
def test_a_reference_that_does_not_fit_the_bundle_is_refused(
    bundle: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    edit_arrays(bundle, "reference.npz", change)
    assert said in refused(5, "bundle_integrity", "verify", bundle, "--data-root", tmp_path)["message"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["gate"].update(split="validation"), "split 'validation', which shapes does not have"),
        (lambda m: m["dataset"].update(name="cifar1000"), "dataset is unknown here: 'cifar1000'"),
        (lambda m: m["gate"]["limits"].update(confidence=95), "gate.limits.confidence must lie between 0 and 1"),
    ],
    ids=["split", "dataset", "confidence"],
)
def test_a_manifest_that_cannot_be_gated_is_refused(
    bundle: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    edit_manifest(bundle, change)
    assert said in refused(5, "bundle_integrity", "verify", bundle, "--data-root", tmp_path)["message"]


def test_an_unknown_dataset_is_not_taken_for_generated_images() -> None:
    with pytest.raises(DatasetError, match="no dataset 'shape'") as error:
        open_dataset("shape")
    assert "shapes" in error.value.remedy
