"""The command line of the scripts beside this one that prepare a recipe as a build does."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def recipe_parser(description: str | None) -> argparse.ArgumentParser:
    """With `recipe`, `data_root` and `checkpoint`; a script adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("ATHE_DATA_ROOT"))
    parser.add_argument("--checkpoint", type=Path)
    return parser
