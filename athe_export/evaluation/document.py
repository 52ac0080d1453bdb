"""Everything that was measured as one JSON document; the report, the tables and the findings are made from it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from athe_export import __version__
from athe_export.bench import machine
from athe_export.data.source import Dataset
from athe_export.dependencies import installed_version
from athe_export.errors import AtheExportError
from athe_export.evaluation.answers import ENGINES, Answers, Ids
from athe_export.evaluation.bundles import RecipeBundle
from athe_export.evaluation.cells import Cells
from athe_export.evaluation.corruptions import STRENGTHS, UNITS, Corruption
from athe_export.evaluation.findings import findings
from athe_export.evaluation.router import against_judge, calibration, confusion
from athe_export.evaluation.rows import Measured, robustness_json, rows_json
from athe_export.evaluation.subset import BalancedSubset, ids_sha256
from athe_export.evaluation.systems import System, dense_for

if TYPE_CHECKING:
    from athe_export.evaluation.run import Job

SCHEMA = 1
_EXAMPLES = 12  # of either half

Robust = Mapping[Corruption | None, Answers]


def document_of(
    job: Job,
    dataset: Dataset,
    bundles: Sequence[RecipeBundle],
    not_built: Sequence[tuple[str, AtheExportError]],
    left_out: Sequence[Mapping[str, str]],
    measured: Measured,
    robust: Mapping[str, Robust],
    images: Mapping[str, Ids],
    cells: Cells,
    no_subset: str | None,
) -> dict[str, Any]:
    """The outcome of an evaluation; docs/evaluate.md is its written form."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "command": job.command,
        "plan": job.plan.to_json(),
        "quick": job.plan.quick,
        "athe_export": __version__,
        "machine": _machine(measured),
        "dataset": {"name": dataset.name, "sha256": dataset.digest, "split": bundles[0].manifest.gate["split"]},
        "images": _images_json(images, measured.subset, no_subset),
        "dense": measured.dense,
        "recipes": [of.to_json() for of in bundles],
        "not_built": [{"recipe": name, "error": error.to_json()} for name, error in not_built],
        "left_out": list(left_out),
        "energy": measured.energies.to_json(),
        "systems": rows_json(measured),
        "routers": [_router_json(s, measured) for s in measured.systems if s.routed and s.key in measured.answers],
        "robustness": _robustness(measured, robust),
        "corruptions": {name: {"levels": list(levels), "unit": UNITS[name]} for name, levels in STRENGTHS.items()},
        "examples": _examples(dataset, bundles[0].manifest.gate["split"], measured),
        "cells": [cell.to_json() for cell in _once(cells)],
        "notes": cells.notes,
    }
    return document | {"findings": findings(document)}


def _machine(measured: Measured) -> dict[str, Any]:
    here = machine.processor()
    names = ["numpy", "PIL", *(name for s in measured.systems for name in ENGINES.get(s.target, ()))]
    return {
        "processor": here.name,
        "features": list(here.features),
        "cpus": here.cpus,
        "packages": {name: version for name in names if (version := installed_version(name))},
        "noise": measured.latencies.noise,
    }


def _images_json(images: Mapping[str, Ids], subset: BalancedSubset | None, why: str | None) -> dict[str, Any]:
    """How many images, their digest, and their ids; all of them are the first of the split, so that a number names them."""
    found: dict[str, Any] = {"all": _ids_json(images["all"]) | {"ids": f"0 to {len(images['all']) - 1}"}}
    found |= {name: _ids_json(ids) | {"ids": ids.tolist()} for name, ids in images.items() if name != "all"}
    if subset is None:
        return found | {"subset": {"not_drawn": why}}
    halves = {name: _ids_json(ids) | {"ids": ids.tolist()} for name, ids in _halves(subset).items()}
    return found | {"subset": {"judge": subset.judge, "judged": subset.pool, **halves, "not_drawn": None}}


def _ids_json(ids: Ids) -> dict[str, Any]:
    return {"images": len(ids), "ids_sha256": ids_sha256(ids)}


def _halves(subset: BalancedSubset) -> dict[str, Ids]:
    return {"simple": subset.simple, "complex": subset.complex}


def _router_json(system: System, measured: Measured) -> dict[str, Any]:
    answers = measured.answers[system.key]
    return {
        "system": system.key,
        "primary": system.primary,
        "verdict": system.manifest.verdict,
        "branches": list(system.branches),
        "bounds": list(system.bounds),
        "confusion": confusion(system.branches, answers),
        "against_judge": against_judge(system.branches, answers, measured.subset),
        "calibration": calibration(answers),
    }


def _robustness(measured: Measured, robust: Mapping[str, Robust]) -> list[dict[str, Any]]:
    rows = []
    for system in measured.systems:
        if system.key in robust:
            dense = dense_for(system, measured.systems, measured.dense)
            other = dense if dense is not None and dense is not system else None
            rows += robustness_json(system, robust[system.key], robust.get(other.key) if other else None)
    return rows


def _examples(dataset: Dataset, split: str, measured: Measured) -> list[dict[str, Any]]:
    """Images of both halves of the subset, evenly over the judge's probability; and where each router sends them."""
    if measured.subset is None:
        return []
    labels, found, sure = dataset.labels(split), [], measured.subset.probability
    routers = [s for s in measured.systems if s.routed and s.primary and s.key in measured.answers]
    for half, ids in _halves(measured.subset).items():
        ranked = sorted(ids.tolist(), key=lambda i: (-sure[i], i))
        picked = {ranked[int(at)] for at in np.linspace(0, len(ranked) - 1, min(_EXAMPLES, len(ranked)))}
        for image in (i for i in ranked if i in picked):
            sent = {s.of.name: s.branches[int(_routed_of(measured.answers[s.key], image))] for s in routers}
            probability = round(sure[image], 4)
            name = dataset.class_names[int(labels[image])]
            found.append({"id": image, "half": half, "class": name, "probability": probability, "sent": sent})
    return found


def _routed_of(answers: Answers, image: int) -> int:
    return int(answers.routed()[int(np.searchsorted(answers.ids, image))])


def _once(cells: Cells) -> list[Any]:
    return list({cell.key: cell for cell in cells.used}.values())
