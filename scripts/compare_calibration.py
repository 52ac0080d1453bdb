"""What calibrator and equalisation make of int8: every combination on held-out images, against fp32 of the same target.

python scripts/compare_calibration.py RECIPE [--data-root DIR] [--checkpoint F] [--target onnx|litert] [--images 512]
    [--alpha A]... [--shift] [--json]

Printed of each: agreement with the fp32 graphs, the mean ratio of signal to quantization noise of the outputs in dB, top-1,
and the difference of top-1 from fp32 in percentage points. An image goes to the branch that the fp32 router sends it to;
where the target's router is int8, agreement counts the images that it sends elsewhere too. The gate's images are never
looked at. Each --alpha adds a round with `equalise: {alpha: A}`, with --shift another with `shift: true`. What the recipe
says of the calibrator and of equalisation is left aside, and the rest of it holds. A branch of the dynamic scheme reads no
images."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from recipe_arguments import recipe_parser

from athe_export import console
from athe_export.calibrators import agreement_of, calibrators_of, noise_of
from athe_export.graphs import export_graph, is_quantized, quantize_job
from athe_export.held_out import HELD_OUT_IMAGES, ROUTER, HeldOut, Trial, draw_held_out, outputs_on
from athe_export.pipeline import prepare
from athe_export.recipe import EqualiseSpec, load_recipe
from athe_export.runtime.engines import ENGINES
from athe_export.stages import StageTimer
from athe_export.system import Prepared, equalise_system


def compared(prepared: Prepared, target: str, held: HeldOut, watch: console.Watch) -> dict[str, dict[str, Trial]]:
    """By calibrator and role; `fp32` is the fp32 graphs against themselves."""
    spec = getattr(prepared.file.recipe.targets, target)
    found: dict[str, dict[str, Trial]] = {}
    for source in prepared.system.sources:
        if source.role == ROUTER and not is_quantized(source, spec):
            continue
        graph = export_graph(prepared, source, spec)
        job, size = quantize_job(target, prepared, source, graph), source.image_size
        exact = outputs_on(
            ENGINES[target](graph.content), held, source.role, size, f"{target} {source.role} fp32", watch.progress
        )
        found.setdefault("fp32", {})[source.role] = held.compare(source.role, exact, exact)
        for name in calibrators_of(type(spec.quantize)) if is_quantized(source, spec) else ():
            quantized = job.quantize(dataclasses.replace(spec.quantize, calibrator=name), job.images())
            said = f"{target} {source.role} {name}"
            outputs = outputs_on(ENGINES[target](quantized.content), held, source.role, size, said, watch.progress)
            found.setdefault(name, {})[source.role] = held.compare(source.role, exact, outputs)
    return found


def row(
    target: str, equalise: EqualiseSpec | None, name: str, roles: dict[str, Trial], exact: dict[str, Trial]
) -> dict[str, Any]:
    top1 = top1_of(roles)
    return {
        "target": target,
        "equalise": None if equalise is None else vars(equalise),
        "calibrator": name,
        "agreement": agreement_of(roles),
        "sqnr_db": noise_of(roles),
        "top1": top1,
        "top1_difference_pp": 100 * (top1 - top1_of(exact)),
        "roles": {role: trial.to_json() for role, trial in roles.items()},
    }


def top1_of(roles: dict[str, Trial]) -> float:
    branches = [trial for role, trial in roles.items() if role != ROUTER]
    return sum(t.correct or 0 for t in branches) / sum(t.images for t in branches)


def shown(rows: list[dict[str, Any]]) -> None:
    print(f"{'target':8}{'equalise':20}{'calibrator':16}{'agreement':>10}{'SQNR dB':>9}{'top-1':>9}{'against fp32':>14}")
    for r in rows:
        said = (
            "-"
            if r["equalise"] is None
            else f"alpha {r['equalise']['alpha']:g}{', shift' if r['equalise']['shift'] else ''}"
        )
        noise = "-" if r["sqnr_db"] is None else f"{r['sqnr_db']:.2f}"
        print(
            f"{r['target']:8}{said:20}{r['calibrator']:16}{100 * r['agreement']:9.2f}%{noise:>9}{100 * r['top1']:8.2f}%"
            f"{r['top1_difference_pp']:+11.2f} pp"
        )


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--target", choices=tuple(ENGINES), help="one of the recipe's; all of them without it")
    parser.add_argument("--images", type=int, default=HELD_OUT_IMAGES)
    parser.add_argument("--alpha", type=float, action="append", default=[])
    parser.add_argument("--shift", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    file = load_recipe(args.recipe)
    file = dataclasses.replace(file, recipe=dataclasses.replace(file.recipe, equalise=None))
    rounds = [None, *(EqualiseSpec(a, s) for a in args.alpha for s in ((False, True) if args.shift else (False,)))]
    rows = []
    with console.Watch() as watch:
        plain = prepare(file, args.data_root, args.checkpoint, StageTimer(watch))
        held = draw_held_out(plain, "--images", args.images)
        for equalise in rounds:
            prepared = plain
            if equalise is not None:
                system = equalise_system(plain.system, plain.routing, plain.images, equalise)
                prepared = dataclasses.replace(plain, system=system)
            for target in [args.target] if args.target else file.recipe.targets.names:
                trials = compared(prepared, target, held, watch)
                rows += [row(target, equalise, name, roles, trials["fp32"]) for name, roles in trials.items()]
    if args.json:
        print(json.dumps({"images": len(held.sources), "rows": rows}, indent=1))
    else:
        print(f"{len(held.sources)} held-out images")
        shown(rows)


if __name__ == "__main__":
    main()
