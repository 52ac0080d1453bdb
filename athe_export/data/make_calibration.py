"""Makes a calibration set: python -m athe_export.data.make_calibration shapes 256 calibration/shapes_256.yaml"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import yaml

from athe_export.data.calibration import make_calibration_set
from athe_export.data.source import open_dataset, require_split
from athe_export.errors import AtheExportError, as_error


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m athe_export.data.make_calibration", description=__doc__)
    parser.add_argument("dataset", choices=["cifar100", "folder", "shapes"])
    parser.add_argument("count", type=int, help="how many images")
    parser.add_argument("output", type=Path, help="the set, a YAML file")
    parser.add_argument("--split", default="train", help="split to draw from (default: train)")
    parser.add_argument("--avoid-split", default="test", help="images that stand here too are passed over (default: test)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--folder", type=Path, help="of a folder dataset")
    args = parser.parse_args()
    if args.dataset == "folder" and args.folder is None:
        parser.error("a folder dataset needs --folder")
    if not 0 <= args.seed < 2**32:
        parser.error("--seed must be 0 to 4294967295")
    try:
        print(_make(args))
    except (Exception, KeyboardInterrupt) as error:
        return _failed(as_error(error))
    return 0


def _make(args: argparse.Namespace) -> str:
    """Writes the set and says what is in it."""
    root = os.environ.get("ATHE_DATA_ROOT")
    dataset = open_dataset(args.dataset, Path(root) if root else None, args.folder)
    require_split(dataset, args.split, "--split")
    require_split(dataset, args.avoid_split, "--avoid-split")
    made = make_calibration_set(dataset, args.split, args.count, args.seed, args.avoid_split)
    content = dataclasses.asdict(made) | {"ids": list(made.ids)}
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110)
    args.output.write_text(text, encoding="utf-8")
    return f"{args.output}: {len(made.ids)} images of {made.dataset}/{made.split}, seed {args.seed}"


def _failed(error: AtheExportError) -> int:
    where = f"\n  at: {error.where}" if error.where else ""
    print(f"error: {error.what}{where}\n  next: {error.remedy}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
