"""What int8 costs each layer of a recipe's branches, and which layers to keep float: as a build does it, without the build.

python scripts/search_precision.py RECIPE [--data-root DIR] [--checkpoint F] [--target onnx|litert] [--sensitivity]
    [--drop 0.3] [--slowdown 1.5] [--minutes 30] [--images N] [--by layer|block] [--json FILE]

With --sensitivity every layer alone in int8, without it the search. What the recipe says under `sensitivity` and `auto` is
left aside; the rest of it holds. Ctrl-C ends a search with the best so far. Held-out images alone are looked at. FILE gets
the record that a bundle's manifest would hold under `precision`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from recipe_arguments import recipe_parser

from athe_export import console
from athe_export.calibrators import CalibrationStudy
from athe_export.graphs import export_graph, is_quantized, quantize_job
from athe_export.layer_precision import PrecisionStudy
from athe_export.pipeline import prepare
from athe_export.recipe import AutoPrecisionSpec, RecipeFile, SensitivitySpec, load_recipe
from athe_export.report.precision_section import (
    SENSITIVITY_COLUMNS,
    TRIAL_COLUMNS,
    keep_float_line,
    sensitivity_rows,
    trial_rows,
)
from athe_export.stages import StageTimer


def asked(file: RecipeFile, target: str, args: argparse.Namespace) -> RecipeFile:
    """The recipe with that target alone, asking for what the arguments say."""
    spec = getattr(file.recipe.targets, target)
    if args.sensitivity:
        wanted: dict[str, Any] = {"sensitivity": SensitivitySpec(args.images or 256, args.by), "auto": None}
    else:
        auto = AutoPrecisionSpec(args.drop, args.slowdown, args.minutes, args.images)
        wanted = {"sensitivity": None, "auto": auto}
    quantize = dataclasses.replace(spec.quantize, **wanted)
    spec = dataclasses.replace(spec, quantize=quantize, precisions=("int8",))
    others = dict.fromkeys(("onnx", "litert")) | {target: spec}
    targets = dataclasses.replace(file.recipe.targets, **others)
    return dataclasses.replace(file, recipe=dataclasses.replace(file.recipe, targets=targets))


def measured(file: RecipeFile, target: str, args: argparse.Namespace, watch: console.Watch) -> dict[str, Any]:
    """The record of one target, shown as soon as it is there."""
    timer = StageTimer(watch)
    prepared = prepare(file, args.data_root, args.checkpoint, timer)
    spec = getattr(file.recipe.targets, target)
    jobs = []
    for source in (s for s in prepared.system.sources if is_quantized(s, spec)):
        with timer.stage(f"{target}: export {source.role}"):
            jobs.append(quantize_job(target, prepared, source, export_graph(prepared, source, spec)))
    study = PrecisionStudy(prepared, watch.progress)
    study.settled(jobs, CalibrationStudy(prepared, watch.progress).settled(jobs, spec.quantize), timer)
    return study.to_json()[target]


def shown(target: str, branches: tuple[str, ...], record: dict[str, Any]) -> None:
    if "sensitivity" in record:
        rows = sensitivity_rows({target: record}, (target,), branches)
        console.print_table(SENSITIVITY_COLUMNS, rows, f"{target}: each layer alone in int8")
    if "search" in record:
        search = record["search"]
        console.print_table(TRIAL_COLUMNS, trial_rows(search), f"{target}: search, ended: {search['ended']}")
        console.say(keep_float_line(search))


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--target", choices=("onnx", "litert"), help="one of the recipe's; all of them without it")
    parser.add_argument("--sensitivity", action="store_true")
    parser.add_argument("--drop", type=float, default=0.3, help="percentage points, held on the bound")
    parser.add_argument("--slowdown", type=float, default=1.5)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--images", type=int)
    parser.add_argument("--by", choices=("layer", "block"), default="layer")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    file, records = load_recipe(args.recipe), {}
    names = tuple(b.name for b in file.recipe.branches)
    for target in [args.target] if args.target else file.recipe.targets.names:
        with console.Watch() as watch:
            records[target] = measured(asked(file, target, args), target, args, watch)
        shown(target, names, records[target])
        if args.json:  # after each target, so that what there is outlives a kill
            args.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
