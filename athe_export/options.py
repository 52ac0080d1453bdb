"""Options and arguments that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder that holds cifar-100-python/, or a packed file; without it the set is downloaded to the "
                 "user cache.", envvar="ATHE_DATA_ROOT"),
]  # fmt: skip
Junit = Annotated[Path | None, typer.Option(help="Write JUnit XML there: a test case a limit and a golden graph.")]
Summary = Annotated[Path | None, typer.Option(help="Write a summary in Markdown there.")]
PowerLogOption = Annotated[
    Path | None, typer.Option(help="Also run a pattern of load, and tell joules by this log of a power meter.")
]
PowerColumns = Annotated[
    str, typer.Option(help="The log's format: auto, a name, or time=COLUMN:ms,power=COLUMN:mW; see docs/energy.md.")
]
RecipeArgument = Annotated[Path, typer.Argument(help="Recipe, a YAML file.", show_default=False)]
BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder.", show_default=False)]
DestinationArgument = Annotated[
    str | None,
    typer.Argument(metavar="USER@HOST:DIR", help="Device and folder, as scp takes them.", show_default=False),
]
