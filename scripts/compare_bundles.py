"""What a change is worth: two bundles of one model, before and after, timed in one interleaved run.

python scripts/compare_bundles.py BEFORE AFTER [--rounds 60] [--json]

Every graph that both have, by target, precision and role, and of every branch a routed image: an image of the training
images' size in memory, resized, through the router and that branch. One thread, pinned. A ratio above 1 means that AFTER is
faster; its 95% interval is over rounds. Times say nothing of accuracy: that is the gate's."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from athe_export import console
from athe_export.bench.machine import pinned
from athe_export.bench.protocol import UNSPLIT, Lap, Plan, Query, Ratio, measure, of_session, ratio
from athe_export.bundle.reader import open_bundle
from athe_export.errors import AtheExportError, UsageError
from athe_export.preprocessing import Preprocessing
from athe_export.runtime.predictor import RoutedGraphs, preprocessing_of


class Row(NamedTuple):
    target: str
    precision: str
    what: str


def queries(path: Path) -> dict[Row, Query]:
    """What is timed of a bundle.

    Raises:
        AtheExportError: the bundle or an engine is not usable here.
    """
    bundle = open_bundle(path)
    preprocessing, draw = preprocessing_of(bundle.manifest), np.random.default_rng(0)
    source = draw.integers(0, 256, (preprocessing.source_size, preprocessing.source_size, 3), np.uint8)
    found: dict[Row, Query] = {}
    for target, precision in bundle.manifest.systems:
        graphs = RoutedGraphs(bundle, target, precision)
        for role, entry in graphs.entries.items():
            image = preprocessing.graph_input(source, entry.inputs[0].shape)
            found[Row(target, precision, role)] = of_session(graphs.session(role), image)
        for branch in graphs.branches if "router" in graphs.entries else ():
            found[Row(target, precision, f"routed {branch}")] = _routed(graphs, source, preprocessing, branch)
    return found


def _routed(graphs: RoutedGraphs, source: np.ndarray, preprocessing: Preprocessing, branch: str) -> Query:
    def query() -> Lap:
        graphs.score(source, preprocessing)
        graphs.answer(source, preprocessing, branch)
        return UNSPLIT

    return query


def compare(before: Path, after: Path, plan: Plan) -> dict[Row, Ratio]:
    """How many times as fast each row of `after` is.

    Raises:
        UsageError: the bundles have nothing in common.
        AtheExportError: a bundle or an engine is not usable here.
    """
    with pinned(1):
        sides = {side: queries(path) for side, path in (("before", before), ("after", after))}
        common = [row for row in sides["before"] if row in sides["after"]]
        if not common:
            raise UsageError("no graph is in both", where=f"{before} and {after}", remedy="give two bundles of one model")
        run = measure({(side, row): sides[side][row] for side in sides for row in common}, plan)
    return {row: ratio(run.series["before", row], run.series["after", row]) for row in common}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds must be 2 or more: an interval is over rounds")
    try:
        found = compare(args.before, args.after, Plan(rounds=args.rounds))
    except AtheExportError as err:
        console.print_error(err, as_json=args.json)
        sys.exit(err.exit_code)
    if args.json:
        console.print_json({"rows": [{**row._asdict(), **vars(times)} for row, times in found.items()]})
        return
    rows = [(*row, f"{r.value:.2f}", f"{r.lower:.2f} to {r.upper:.2f}") for row, r in found.items()]
    console.print_table(("target", "precision", "what", "times as fast", "95%"), rows)


if __name__ == "__main__":
    main()
