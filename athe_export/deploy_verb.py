"""`deploy`: a bundle brought to a device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from athe_export import console
from athe_export.errors import UsageError
from athe_export.options import DestinationArgument, JsonFlag

DEPLOY_EXAMPLES = (
    "Examples: athe-export deploy BUNDLE pi@raspberrypi:athe · athe-export deploy pi@raspberrypi:athe --rollback"
)


def deploy(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; of no use with --rollback.", show_default=False)],
    destination: DestinationArgument = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Collect all wheels here and send them, for a device without internet.")
    ] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to the version before, once it verifies.")] = False,
    camera: Annotated[
        bool, typer.Option("--camera", help="Install OpenCV there too, which run --camera needs; say so each time.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the device and show the plan; write nothing there.")
    ] = False,
    with_reference: Annotated[
        bool, typer.Option("--with-reference", help="Send reference.npz too, which the parity gate there needs.")
    ] = False,
    target: Annotated[
        str, typer.Option(help="Engine to install: auto (LiteRT where the bundle has it), litert or onnx.")
    ] = "auto",
    python: Annotated[str, typer.Option(help="Interpreter on the device.")] = "python3",
    constraint: Annotated[Path | None, typer.Option(help="Versions for pip to keep to, as pip's -c.")] = None,
    ssh_config: Annotated[Path | None, typer.Option(help="Configuration of ssh, as its -F: port, key, jump host.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Bring a bundle to a device over ssh: check it, send, install, verify there, then switch; or go back."""
    from athe_export.deploy.destination import parse_destination
    from athe_export.deploy.plan import Options
    from athe_export.deploy.run import deploy_bundle, roll_back
    from athe_export.deploy.table import deploy_text

    if destination is None and not rollback:
        raise UsageError("deploy needs a bundle and a destination", remedy="athe-export deploy BUNDLE user@host:dir")
    to = parse_destination(destination if destination is not None else str(bundle))
    options = Options(target, offline, with_reference, camera, python, constraint, ssh_config, batch=not sys.stdin.isatty())
    with console.Watch() as watch:
        document = roll_back(to, options, watch, dry_run) if rollback else deploy_bundle(bundle, to, options, watch, dry_run)
    console.print_json(document) if as_json else console.print_tables(*deploy_text(document))
