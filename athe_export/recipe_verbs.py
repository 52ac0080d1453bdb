"""The verbs of `recipes`: list what is shipped, copy one to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from athe_export import console
from athe_export.options import JsonFlag

recipes_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Shipped recipes: list them, copy one to start from.",
    epilog="Examples: athe-export recipes list · athe-export recipes copy quickstart .",
)


@recipes_app.command("list", epilog="Example: athe-export recipes list")
def recipes_list(as_json: JsonFlag = False) -> None:
    """List the shipped recipes."""
    from athe_export.shipped import shipped_recipes

    found = shipped_recipes()
    if as_json:
        console.print_json({"recipes": [{"name": r.name, "path": str(r.path), "summary": r.summary} for r in found]})
    else:
        console.print_table(("name", "what it builds"), [(r.name, r.summary) for r in found])


@recipes_app.command(
    "copy", epilog="Example: athe-export recipes copy quickstart . && athe-export build recipes/quickstart.yaml"
)
def recipes_copy(
    name: Annotated[str, typer.Argument(help="As listed.", show_default=False)],
    folder: Annotated[
        Path, typer.Argument(help="Folder to copy into; recipes/, calibration/ and artifacts/ appear there.")
    ] = Path(),
    as_json: JsonFlag = False,
) -> None:
    """Copy a shipped recipe with its calibration set and checkpoint."""
    from athe_export.shipped import copy_recipe

    copied = copy_recipe(name, folder)
    if as_json:
        console.print_json({"copied": [str(p) for p in copied.files], "absent": [str(p) for p in copied.absent]})
        return
    absent = [f"not in this package: {p}; take it from a checkout of athe-export, or train it" for p in copied.absent]
    verb = "train" if absent else "build"
    console.say("\n".join([*map(str, copied.files), *absent, f"next: athe-export {verb} {copied.files[0]}"]))
