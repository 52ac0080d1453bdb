"""The same checkpoint and images through what people would use instead, and through our bundle, in one interleaved run.

pip install -c scripts/constraints.txt -r scripts/peers.txt, then
python scripts/bench_peers.py RECIPE [--bundle DIR] [--data-root DIR] [--checkpoint F] [--quick] [--images N]
    [--calibration N] [--family NAME ...] [--python FAMILY=PATH ...] [--json F] [--markdown F] [--svg F]

RECIPE gives checkpoint, images and branches; DIR is what `athe-export build RECIPE --controls` made of it
(artifacts/bundles/NAME unless said). Each family of peers is a process of its own on one thread, all pinned to one CPU; they
answer queries in turn and time themselves, so that the pipe between is in no time. A family may live in another virtual
environment (--python). What is not installed, or refuses a graph, is listed as not measured, with the reason.

docs/benchmarks.md says how to read what is printed.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

from peers.document import document, goals
from peers.measure import run
from peers.peer import FAMILIES, OURS, RATES
from peers.prepare import write_job
from peers.tables import drawing, lines, markdown, tables
from recipe_arguments import recipe_parser

from athe_export import console
from athe_export.bench.protocol import Plan
from athe_export.errors import AtheExportError
from athe_export.pipeline import prepare
from athe_export.recipe import load_recipe
from athe_export.stages import StageTimer

QUICK = Plan(rounds=12, slice_s=0.02, warm_up=2)
FULL = Plan(rounds=30, slice_s=0.1)  # a row of 100 ms has 30 queries then
IMAGES = {True: (100, 16), False: (400, 64)}  # quick or not: test images, calibration images a graph


def arguments() -> ArgumentParser:
    parser = recipe_parser(__doc__)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds: minutes, and wider intervals")
    parser.add_argument("--images", type=int, help="test images; 400 unless said, 100 with --quick")
    parser.add_argument("--calibration", type=int, help="calibration images a graph; 64 unless said, 16 with --quick")
    choices = (*FAMILIES, OURS, RATES)
    parser.add_argument("--family", action="append", choices=choices, help="measure these alone; all without it")
    parser.add_argument("--python", action="append", default=[], metavar="FAMILY=PATH", help="interpreter of a family")
    for name, what in (("json", "everything"), ("markdown", "tables"), ("svg", "the drawing")):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write {what} to a file")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    pythons = dict(said.split("=", 1) for said in args.python if "=" in said)
    if len(pythons) != len(args.python) or not set(pythons) <= {*FAMILIES, OURS, RATES}:
        parser.error("--python takes FAMILY=PATH, once a family")
    images, calibration = args.images or IMAGES[args.quick][0], args.calibration or IMAGES[args.quick][1]
    logging.disable(logging.WARNING)
    plan = QUICK if args.quick else FULL
    try:
        with console.Watch() as watch, tempfile.TemporaryDirectory() as folder:
            timer = StageTimer(watch)
            prepared = prepare(load_recipe(args.recipe), args.data_root, args.checkpoint, timer)
            job = write_job(prepared, Path(folder), args.bundle, images, calibration, timer)
            families = [f for f in (*FAMILIES, OURS, RATES) if f in (args.family or (*FAMILIES, OURS, RATES))]
            found = document(run(job, families, plan, pythons, timer, watch.share("times")), job, plan, args.quick)
    except AtheExportError as err:
        console.print_error(err, as_json=False)
        sys.exit(err.exit_code)
    found["goals"] = goals(found)
    command = shlex.join(["python", "scripts/bench_peers.py", *sys.argv[1:]])
    console.print_tables(tables(found), lines(found, found["goals"]))
    written = {args.json: json.dumps(found, indent=1) + "\n", args.markdown: markdown(found, found["goals"], command)}
    for file, text in (written | {args.svg: drawing(found)}).items():
        if file is not None:
            file.write_text(text)


if __name__ == "__main__":
    main()
