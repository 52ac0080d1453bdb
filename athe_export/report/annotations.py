"""GitHub annotations: workflow commands that a runner reads off a step's output and shows beside the job.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

from athe_export.report.checks import ERROR, FAIL, INCONCLUSIVE, Check, Outcome

_LEVELS = {ERROR: "error", FAIL: "error", INCONCLUSIVE: "warning"}
_SHOWN = 10  # of each level a step: more are dropped by GitHub


def annotation_lines(outcome: Outcome) -> tuple[str, ...]:
    """One line each: `::error` for what failed, `::warning` for what is inconclusive; where there are too many, the last
    one says how many are left out."""
    lines: list[str] = []
    for level in ("error", "warning"):
        found = [c for c in outcome.checks if _LEVELS.get(c.verdict) == level]
        shown = found if len(found) <= _SHOWN else found[: _SHOWN - 1]
        lines += [_line(level, outcome.title, _said(check)) for check in shown]
        if len(found) > len(shown):
            lines.append(_line(level, outcome.title, f"and {len(found) - len(shown)} more, in the summary and the log"))
    return tuple(lines)


def _said(check: Check) -> str:
    return f"golden, {check.subject} {check.name}: {check.said}" if check.group == "golden" else check.said


def _line(level: str, title: str, message: str) -> str:
    named = _data(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={named}::{_data(message)}"


def _data(words: str) -> str:
    """As the runner decodes it: a line break would end the command."""
    return words.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
