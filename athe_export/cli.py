"""The entry point: runs a verb, and turns every failure into one message and a documented exit code."""

from __future__ import annotations

import os
import sys
import traceback

from typer.exceptions import TyperException

from athe_export import console
from athe_export.errors import AtheExportError, Interrupted, UsageError, as_error
from athe_export.verbs import app


def main() -> None:
    """Entry point: every failure ends in one message and a documented exit code."""
    code = _run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:  # said already; the interpreter would try again as it ends, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        result = app(args=arguments, prog_name="athe-export", standalone_mode=False)
        sys.stdout.flush()  # a full disk behind stdout is met here, while it can still be said
    except TyperException as error:
        if not error.format_message():  # no verb was given: the help was printed in its place
            return UsageError.exit_code
        return _failed(UsageError(error.format_message()), arguments)
    except BaseException as error:
        cause = error.__context__ if isinstance(error, SystemExit) else error
        if isinstance(cause, BrokenPipeError):  # nobody reads stdout any more; Typer and Rich then call sys.exit
            return 0
        return _failed(error, arguments)
    if result == Interrupted.exit_code:  # Typer's word for a KeyboardInterrupt below it
        return _failed(KeyboardInterrupt(), arguments)
    return result if isinstance(result, int) else 0


def _failed(error: BaseException, arguments: list[str]) -> int:
    failure, as_json = as_error(error), "--json" in arguments
    if failure.exit_code == AtheExportError.exit_code and os.environ.get("ATHE_DEBUG"):
        traceback.print_exception(error)
    console.print_error(failure, as_json, in_lines=_in_lines(arguments))
    return failure.exit_code


def _in_lines(arguments: list[str]) -> bool:
    """Whether JSON was asked for of a verb that prints a line for each of its results."""
    return arguments[:1] == ["run"] and bool({"--watch", "--camera"} & {a.partition("=")[0] for a in arguments})


if __name__ == "__main__":
    main()
