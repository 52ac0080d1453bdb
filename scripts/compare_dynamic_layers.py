"""Which layers of a static LiteRT graph are better dynamic: agreement and noise on held-out images, and time, side by side.

python scripts/compare_dynamic_layers.py RECIPE [--data-root DIR] [--checkpoint F] [--layers GLOB[,GLOB]...]...
    [--images 2000] [--runs 40] [--json]

Each --layers is a form of the recipe's LiteRT graphs in which these layers are dynamic and all others static, whatever the
recipe says of them; the rest of it holds. `none` and `all` are measured beside them. Printed of each: agreement with the
fp32 graphs on images that the reference routes to the branch, the ratio of signal to quantization noise of the logits, and
how many times as fast a branch is as with every layer static: graphs alone, one thread, all in one interleaved run. The
gate's images are never looked at."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
from recipe_arguments import recipe_parser

from athe_export import console
from athe_export.bench.machine import pinned
from athe_export.bench.protocol import Plan, measure, of_session
from athe_export.graphs import export_graph, quantize_job
from athe_export.held_out import ROUTER, Trial, draw_held_out, outputs_on
from athe_export.pipeline import prepare
from athe_export.recipe import LitertQuantizeSpec, load_recipe
from athe_export.runtime.litert_session import LitertSession
from athe_export.stages import StageTimer

NONE, ALL = "none", "all"


def form(spec: LitertQuantizeSpec, layers: str) -> LitertQuantizeSpec:
    """The recipe's quantization with these layers dynamic."""
    if layers == ALL:
        return dataclasses.replace(spec, scheme="dynamic_wi8_afp32", dynamic=(), calibrator="min_max")
    globs = () if layers == NONE else tuple(layers.split(","))
    return dataclasses.replace(spec, scheme="static_wi8_ai8", dynamic=globs)


def times(sessions: dict[tuple[str, str], LitertSession], runs: int) -> dict[tuple[str, str], float]:
    """Median seconds of each graph."""
    image = np.random.default_rng(0).integers(0, 256, next(iter(sessions.values())).input_shape).astype(np.uint8)
    with pinned(1):
        run = measure({k: of_session(s, image) for k, s in sessions.items()}, Plan(rounds=runs, slice_s=0.05))
    return {key: run.series[key].percentile(50) for key in sessions}


def row(layers: str, trials: dict[str, Trial], ms: dict[tuple[str, str], float]) -> dict[str, Any]:
    images = sum(t.images for t in trials.values())
    return {
        "dynamic": layers,
        "images": images,
        "agreement": sum(t.agreement * t.images for t in trials.values()) / images,
        "sqnr_db": {role: t.sqnr_db for role, t in trials.items()},
        "times_as_fast_as_static": {role: ms[role, NONE] / ms[role, layers] for role in trials},
    }


def shown(rows: list[dict[str, Any]]) -> None:
    roles = list(rows[0]["sqnr_db"])
    print(f"{'dynamic':28}{'agreement':>10}" + "".join(f"{r + ', dB':>14}{r + ', ×':>14}" for r in roles))
    for r in rows:
        cells = "".join(f"{r['sqnr_db'][role]:14.1f}{r['times_as_fast_as_static'][role]:14.2f}" for role in roles)
        print(f"{r['dynamic']:28}{100 * r['agreement']:9.2f}%{cells}")


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--layers", action="append", default=[], metavar="GLOBS", help="globs with commas between them")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    forms = [NONE, *args.layers, ALL]
    with console.Watch() as watch:
        prepared = prepare(load_recipe(args.recipe), args.data_root, args.checkpoint, StageTimer(watch))
        held, target = draw_held_out(prepared, "--images", args.images), prepared.file.recipe.targets.litert
        if target is None:
            parser.error("the recipe has no target litert")
        trials: dict[str, dict[str, Trial]] = {layers: {} for layers in forms}
        sessions = {}
        for source in (s for s in prepared.system.sources if s.role != ROUTER):
            graph = export_graph(prepared, source, target)
            job = quantize_job("litert", prepared, source, graph)
            exact = outputs_on(
                LitertSession(graph.content), held, source.role, source.image_size, f"{source.role} fp32", watch.progress
            )
            for layers in forms:
                session = LitertSession(job.quantize(form(target.quantize, layers), job.images()).content)
                said = f"{source.role} {layers}"
                found = outputs_on(session, held, source.role, source.image_size, said, watch.progress)
                trials[layers][source.role] = held.compare(source.role, exact, found)
                sessions[source.role, layers] = session
    ms = times(sessions, args.runs)
    rows = [row(layers, trials[layers], ms) for layers in forms]
    if args.json:
        print(json.dumps({"runs": args.runs, "rows": rows}, indent=1))
    else:
        shown(rows)


if __name__ == "__main__":
    main()
