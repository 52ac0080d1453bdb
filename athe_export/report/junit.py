"""JUnit XML, as Jenkins, GitLab and GitHub actions that show tests read it.

A broken limit is a `failure`, an inconclusive one an `error`: both make a job's test report red, and they are counted apart.
Skipping what is inconclusive would show it green. What was not looked at is `skipped`, by name.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import groupby

from athe_export.report.checks import ERROR, FAIL, INCONCLUSIVE, SKIPPED, Check, Outcome

_TAGS = {FAIL: "failure", INCONCLUSIVE: "error", ERROR: "error", SKIPPED: "skipped"}
_UNPRINTABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 cannot hold these


def junit_xml(outcome: Outcome) -> str:
    """One testsuite a group of checks, one testcase a check; `classname` is group and subject, so that tools nest them."""
    root = ET.Element("testsuites", {"name": _text(outcome.title), **_counts(outcome.checks)})
    for group, checks in groupby(outcome.checks, key=lambda c: c.group):
        found = tuple(checks)
        suite = ET.SubElement(root, "testsuite", {"name": group, **_counts(found)})
        for check in found:
            names = {"classname": _text(f"{group}.{check.subject}"), "name": _text(check.name)}
            case = ET.SubElement(suite, "testcase", names)
            if tag := _TAGS.get(check.verdict):
                kind = {} if tag == "skipped" else {"type": check.name if check.verdict == ERROR else check.verdict}
                ET.SubElement(case, tag, {"message": _text(check.said), **kind})
            else:
                ET.SubElement(case, "system-out").text = _text(check.said)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _counts(checks: tuple[Check, ...]) -> dict[str, str]:
    tags = [_TAGS.get(c.verdict) for c in checks]
    counted = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    return {"tests": str(len(checks))} | {name: str(tags.count(tag)) for name, tag in counted.items()}


def _text(words: str) -> str:
    return _UNPRINTABLE.sub("�", words)
