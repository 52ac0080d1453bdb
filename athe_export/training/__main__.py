"""python -m athe_export.training RECIPE: training on a machine that has no command-line packages."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from athe_export.errors import AtheExportError
from athe_export.recipe import load_recipe
from athe_export.training.train import train_recipe


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m athe_export.training", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("ATHE_DATA_ROOT"))
    parser.add_argument("--init", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--max-minutes", type=float)
    options = vars(parser.parse_args())
    try:
        root = options.pop("data_root")
        result = train_recipe(
            load_recipe(options.pop("recipe")),
            data_root=Path(root) if root else None,
            command=" ".join(["python -m athe_export.training", *sys.argv[1:]]),
            report=lambda line: print(line, flush=True),
            **options,
        )
    except AtheExportError as err:
        print(f"error: {err.what}\n  at: {err.where}\n  next: {err.remedy}", file=sys.stderr)
        return err.exit_code
    print(f"{result.path}  sha256 {result.sha256}\n{result.metrics}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
