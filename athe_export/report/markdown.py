"""A summary in Markdown, for a job's page: verdict, systems, limits, hops, and where images were lost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from athe_export.report.checks import ERROR, FAIL, INCONCLUSIVE, PASS, SKIPPED, Outcome
from athe_export.report.measured import HOP_COLUMNS, LIMIT_COLUMNS, attribution_said, hop_row, limit_figures, not_measured

_WORDS = {PASS: "passed", FAIL: "**failed**", INCONCLUSIVE: "**inconclusive**", ERROR: "**not done**", SKIPPED: "skipped"}
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def markdown_summary(outcome: Outcome) -> str:
    """The summary as text; parts that there is nothing for are left out."""
    parts = [
        f"## {plain(outcome.title)}: {_WORDS[outcome.verdict]}",
        f"{outcome.count(PASS)} of {len(outcome.checks)} checks passed, {outcome.count(FAIL)} failed, "
        f"{outcome.count(INCONCLUSIVE)} inconclusive, {outcome.count(SKIPPED)} skipped; exit code {outcome.exit_code}.",
        _list([c.said for c in outcome.checks if c.verdict == ERROR]),
        _list(
            [f"golden, {c.subject} {c.name}: {c.said}" for c in outcome.checks if c.group == "golden" and c.verdict == FAIL]
        ),
        _list([c.said if c.group == "parity" else f"{c.name}: {c.said}" for c in outcome.checks if c.verdict == SKIPPED]),
        _parity(outcome.parity) if outcome.parity else "",
        f"Next: {plain(outcome.remedy)}" if outcome.remedy and outcome.verdict != ERROR else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _parity(parity: dict[str, Any]) -> str:
    parts = [
        f"### Limits, on {parity['images']:,} images",
        _table(
            ("limit", "verdict", *LIMIT_COLUMNS), [(x["name"], x["verdict"], *limit_figures(x)) for x in parity["limits"]]
        ),
    ]
    if findings := parity.get("findings"):
        parts += ["### Findings", _list(findings)]
    hops = parity.get("hops") or []
    if hops:
        inner = _table(HOP_COLUMNS, [hop_row(h) for h in hops])
        inner += "".join(f"\n\nToken overlap not measured: {plain(w)}." for w in not_measured(hops))
        parts.append(f"<details><summary>Hop by hop</summary>\n\n{inner}\n\n</details>")
    lost = [f"{name}: {attribution_said(t['attribution'])}" for name, t in parity["targets"].items() if t.get("attribution")]
    if lost:
        parts += ["### Where images were lost", _list(lost)]
    return "\n\n".join(parts)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(plain(c) if i != 1 else c for c in line) + " |" for i, line in enumerate(lines))


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)


def plain(words: str) -> str:
    """Text that stays text, on one line: messages hold paths, and names hold underscores."""
    return _SPECIAL.sub(r"\\\1", " ".join(words.split()))
