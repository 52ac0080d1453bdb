"""The verb `evaluate`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from athe_export import console
from athe_export.dependencies import require
from athe_export.errors import (
    AtheExportError,
    GateFailed,
    GateInconclusive,
    Interrupted,
    PowerLogError,
    UsageError,
    as_error,
)
from athe_export.options import DataRoot, JsonFlag, PowerColumns, PowerLogOption

if TYPE_CHECKING:
    from athe_export.evaluation.energy import Metered
    from athe_export.evaluation.run import Evaluation
    from athe_export.recipe import RecipeFile

EXAMPLES = "Examples: athe-export evaluate recipes/quickstart.yaml --quick · athe-export evaluate MY.yaml -o OUT"


def evaluate(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes, YAML files.", show_default=False)],
    quick: Annotated[
        bool, typer.Option("--quick", help="Minutes: few images, few queries, small gates; said in every output.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder; default artifacts/evaluation, with --quick artifacts/evaluation-quick."
        ),
    ] = None,
    data_root: DataRoot = None,
    power_log: PowerLogOption = None,
    power_columns: PowerColumns = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Run the paper's experiment over recipes: accuracy, speed, routers and robustness, as one report.

    What is in the output folder already, and depends on the same things, is not measured again.
    """
    from athe_export.evaluation.files import write_files
    from athe_export.evaluation.plan import FULL, QUICK
    from athe_export.evaluation.run import Job
    from athe_export.evaluation.run import evaluate as run
    from athe_export.evaluation.tables import systems_grid
    from athe_export.recipe import load_recipe
    from athe_export.report.gallery import thumbnail

    metered = _metered(power_log, power_columns)
    folder = output or Path("artifacts") / ("evaluation-quick" if quick else "evaluation")
    files = tuple(load_recipe(path) for path in recipes)
    command = shlex.join(["athe-export", *sys.argv[1:]])
    with console.Watch() as watch:

        def build(file: RecipeFile, where: Path) -> None:
            require("build bundles")
            from athe_export.pipeline import run_build

            run_build(file, where, watch, data_root)

        job = Job(files, folder, QUICK if quick else FULL, build, command, data_root, (Path("artifacts/bundles"),), metered)
        try:
            found = run(job, watch)
        except BaseException as error:
            if isinstance(as_error(error), Interrupted):
                raise Interrupted(
                    "interrupted", remedy="run the same command again: it goes on from what is measured"
                ) from None
            raise
    document, split = found.document, found.document["dataset"]["split"]
    pictures = {e["id"]: thumbnail(found.dataset.image(split, e["id"])) for e in document["examples"]}
    paths = write_files(document, pictures, folder)
    if not as_json:
        grid = systems_grid(document)
        console.print_table(grid.columns, grid.rows, "quick evaluation" if quick else "evaluation")
        for line in document["findings"]:
            console.say(f"{line['kind']}: {line['text']}")
        console.say("\n".join(map(str, paths)))
    if missed := missed_error(found, folder):
        raise missed
    if as_json:
        console.print_json(dict(document))


def _metered(log: Path | None, columns: str) -> Metered | None:
    """
    Raises:
        UsageError: columns without a log, or no such columns.
        PowerLogError: a log that is there already is in an unknown format.
    """
    from athe_export.bench.meters import asked_columns
    from athe_export.bench.power_log import check_format
    from athe_export.evaluation.energy import Metered

    asked = asked_columns(columns)
    if log is None:
        if columns != "auto":
            raise UsageError("there is no log to read", where="--power-log", remedy="add --power-log FILE")
        return None
    check_format(log, asked)
    return Metered(log, asked)


def missed_error(found: Evaluation, folder: Path) -> AtheExportError | None:
    """What ends an evaluation whose report is written and which is not whole; None where nothing is missing.

    A gate that failed outranks a recipe that could not be built, that one a power log that was refused, and that one a gate
    that cannot decide. With `--quick` small gates are expected not to decide.
    """
    document: dict[str, Any] = dict(found.document)
    verdicts = {r["name"]: r["verdict"] for r in document["recipes"]}
    remedy = f"the report is written all the same, see {folder}; mend these recipes, or leave them out"
    if failed := [name for name, verdict in verdicts.items() if verdict == "fail"]:
        return GateFailed(f"the parity gate failed: {', '.join(failed)}", where=str(folder), remedy=remedy, report=document)
    if found.not_built:
        names = ", ".join(x["recipe"] for x in document["not_built"])
        first = found.not_built[0]
        what = f"not built: {names}; the first because: {first.what}"
        return type(first)(what, where=first.where, remedy=remedy, report=document)
    if refused := found.refused:
        remedy = f"{refused.remedy}; the same command reads it again, and a log of another name takes a new run"
        return PowerLogError(refused.what, where=refused.where, remedy=remedy, report=document)
    if (open_ := [name for name, verdict in verdicts.items() if verdict == "inconclusive"]) and not document["quick"]:
        return GateInconclusive(
            f"the parity gate is inconclusive: {', '.join(open_)}", where=str(folder), remedy=remedy, report=document
        )
    return None
