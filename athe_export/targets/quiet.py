"""Keeping third-party chatter out of a build's output: converters report every step, and what they lack, in many ways."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from athe_export.runtime.litert_session import native_stderr_muted


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops prints, warnings, logs and native output; what goes wrong comes as an exception."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    aside = io.StringIO()  # sys.stderr too: on a terminal it is not file descriptor 2 but Rich's
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(aside),
            contextlib.redirect_stderr(aside),
            native_stderr_muted(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
