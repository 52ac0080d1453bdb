"""Makes a calibration set: python scripts/make_calibration.py shapes 256 calibration/shapes_256.yaml"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

import yaml

from athe_export.data import open_dataset
from athe_export.data.calibration import make_calibration_set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=["cifar100", "folder", "shapes"])
    parser.add_argument("count", type=int)
    parser.add_argument("output", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--avoid-split", default="test", help="images that stand here too are passed over")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of a folder dataset")
    args = parser.parse_args()
    root = os.environ.get("ATHE_DATA_ROOT")
    dataset = open_dataset(args.dataset, Path(root) if root else None, args.folder)
    made = make_calibration_set(dataset, args.split, args.count, args.seed, args.avoid_split)
    content = dataclasses.asdict(made) | {"ids": list(made.ids)}
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110)
    args.output.write_text(text, encoding="utf-8")
    print(f"{args.output}: {len(made.ids)} images of {made.dataset}/{made.split}, seed {args.seed}")


if __name__ == "__main__":
    main()
