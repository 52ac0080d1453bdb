"""python -m athe_export.training RECIPE: training on a machine that has no command-line packages."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

from athe_export.errors import RESUME, AtheExportError, Interrupted, as_error
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
    parser.add_argument("--compile", action="store_true", dest="compiled")
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
    except (Exception, KeyboardInterrupt) as error:
        return _failed(error)
    print(f"{result.path}  sha256 {result.sha256}\n{result.metrics}")
    return 0


def _failed(error: BaseException) -> int:
    """One message, as the command line says it."""
    failure = as_error(error)
    if isinstance(failure, Interrupted):
        failure = Interrupted("interrupted", remedy=RESUME)
    if failure.exit_code == AtheExportError.exit_code and os.environ.get("ATHE_DEBUG"):
        traceback.print_exception(error)
    where = [f"  at: {failure.where}"] if failure.where else []
    print("\n".join([f"error: {failure.what}", *where, f"  next: {failure.remedy}"]), file=sys.stderr)
    return failure.exit_code


if __name__ == "__main__":
    sys.exit(main())
