"""What CI is told of a `verify` or a `build`: a check a golden graph and a limit, from the one JSON document of `--json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from athe_export.report.measured import limit_said

PASS, FAIL, INCONCLUSIVE, SKIPPED, ERROR = "pass", "fail", "inconclusive", "skipped", "error"
_GATES = ("gate_failed", "gate_inconclusive")  # kinds of error whose cause is among the checks already


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: `group` golden, parity or bundle, the `subject` in it (a target, a system, a system's
    branch), `name`, and `verdict` pass, fail, inconclusive, skipped or error, with a sentence."""

    group: str
    subject: str
    name: str
    verdict: str
    said: str


@dataclass(frozen=True)
class Outcome:
    """A finished `verify` or `build`: `title` (the verb and what it was given), exit code, all checks, and the parity
    object where the gate was run."""

    title: str
    exit_code: int
    checks: tuple[Check, ...]
    parity: dict[str, Any] | None
    remedy: str | None = None

    @property
    def verdict(self) -> str:
        """The worst of the checks, in words."""
        found = {c.verdict for c in self.checks}
        return next((v for v in (ERROR, FAIL, INCONCLUSIVE) if v in found), PASS)

    def count(self, verdict: str) -> int:
        return sum(c.verdict == verdict for c in self.checks)


def outcome_of(title: str, document: dict[str, Any]) -> Outcome:
    """From the JSON document that `verify --json` or `build --json` prints, also where it ends in an error."""
    error, parity = document.get("error"), document.get("parity")
    checks = [*_golden(document), *_parity(document)]
    if error is not None and error["kind"] not in _GATES:
        where = f" ({error['where']})" if error["where"] else ""
        checks.append(Check("bundle", title, error["kind"], ERROR, f"{error['message']}{where}; next: {error['remedy']}"))
    code, remedy = (error["code"], error["remedy"]) if error is not None else (0, None)
    return Outcome(title, code, tuple(checks), parity, remedy)


def _golden(document: dict[str, Any]) -> list[Check]:
    """One check a graph; graphs that no engine here can open are skipped by name."""
    checks = []
    for g in document.get("golden") or []:
        said = f"largest difference {g['max_abs_diff']:.3g}, {g['tolerance']:g} is allowed"
        said += "" if g["same_top1"] else "; decides differently"
        said += f"; {g['note']}" if g.get("note") else ""
        checks.append(Check("golden", g["target"], f"{g['role']} {g['precision']}", PASS if g["passed"] else FAIL, said))
    for left in document.get("not_run") or []:
        checks += [Check("golden", left["target"], file, SKIPPED, f"not run: {left['why']}") for file in left["files"]]
    return checks


def _parity(document: dict[str, Any]) -> list[Check]:
    """One check a limit; where the gate was not run, one that says so."""
    parity = document.get("parity")
    if parity is None:
        if "parity" not in document:  # it ended before
            return []
        never = "not_gated" in (document.get("verdict"), document.get("gate_at_build"))
        why = "the weights were never trained" if never else "no --data-root was given"
        return [Check("parity", "bundle", "gate", SKIPPED, f"the parity gate was not run: {why}")]
    return [_limit(limit) for limit in parity["limits"]]


def _limit(limit: dict[str, Any]) -> Check:
    subject, _, name = limit["name"].rpartition(".")
    return Check("parity", subject, name, limit["verdict"], limit_said(limit))
