"""The recipes that travel with the package, and copying one with all the files it names."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from athe_export.errors import EnvironmentFailure, UsageError

if TYPE_CHECKING:
    from athe_export.recipe import Recipe


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe file, its place below recipes/ without the suffix, and the first line of its comment."""

    name: str
    path: Path
    summary: str


@dataclass(frozen=True)
class Copied:
    """Files that were copied, the recipe first, and those that it names and the package does not hold, as they would lie."""

    files: tuple[Path, ...]
    absent: tuple[Path, ...]


def root() -> Path:
    """The folder that holds recipes/, calibration/ and artifacts/: inside the wheel, or the checkout itself."""
    packaged = Path(__file__).parent / "shipped"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent


def shipped_recipes() -> tuple[ShippedRecipe, ...]:
    """Every recipe below recipes/; a baseline's name is `baselines/<file>`."""
    folder = root() / "recipes"
    found = {p.relative_to(folder).with_suffix("").as_posix(): p for p in sorted(folder.rglob("*.yaml"))}
    return tuple(ShippedRecipe(n, p, p.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")) for n, p in found.items())


def copy_recipe(name: str, folder: Path) -> Copied:
    """Copies a recipe, its calibration set and its checkpoint below `folder`, laid out as the recipe's paths expect.

    A checkpoint that is not trained yet, or too large to travel in the wheel, is named in `absent`.

    Raises:
        UsageError: no such recipe.
        MissingDependency: without PyYAML.
        EnvironmentFailure: a file is there already; nothing is written then.
    """
    from athe_export.recipe import load_recipe  # needs PyYAML, which listing goes without

    recipes = {r.name: r for r in shipped_recipes()}
    if name not in recipes:
        raise UsageError(f"there is no shipped recipe {name!r}", remedy="choose one of: " + ", ".join(recipes))
    file = load_recipe(recipes[name].path)
    sources = [file.path, *map(file.resolve, _named_files(file.recipe))]
    copies = {source: folder / source.relative_to(root().resolve()) for source in sources}
    pairs = [(source, copy) for source, copy in copies.items() if source.exists()]
    for _, copy in pairs:
        if copy.exists():
            raise EnvironmentFailure("is there already; it is not overwritten", where=str(copy), remedy="copy elsewhere")
    for source, copy in pairs:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return Copied(tuple(copy for _, copy in pairs), tuple(c for source, c in copies.items() if not source.exists()))


def _named_files(recipe: Recipe) -> list[str]:
    return [recipe.data.calibration, *([recipe.checkpoint.path] if recipe.checkpoint.path else [])]
