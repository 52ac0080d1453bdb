"""What the gate measured, in words and figures: the same in the page, in the Markdown summary and in JUnit.

Read from the JSON of a `ParityReport`. Fields that an older bundle does not have are left out, never guessed.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
LIMIT_COLUMNS = ("allowed", "measured", "bounds", "images needed")
HOP_COLUMNS = (
    "hop",
    "target",
    "path",
    "images",
    "top-1",
    "drop, pp",
    "bounds, pp",
    "McNemar p",
    "agreement",
    "mean KL",
    "logit cosine",
    "token overlap",
    "routed alike",
)
_VERDICTS = {"pass": "holds", "fail": "is broken", "inconclusive": "cannot be decided with these images"}


def in_unit(name: str, value: float | None) -> str:
    """A limit's figure in its unit: percentage points of a `…_pp`, dB of a `…_db`, per cent of an agreement, else plain."""
    if value is None:
        return ""
    if name.endswith("_pp"):
        return f"{_unsigned_zero(value):.2f} pp"
    if name.endswith("_db"):
        return f"{value:.1f} dB"
    return f"{100 * value:.2f}%" if name.endswith("agreement") else f"{value:g}"


def limit_said(limit: Json) -> str:
    """One limit in a sentence: what was allowed, what was measured with its bounds, how many images would decide."""
    allowed, measured, bounds, needed = limit_figures(limit)
    said = f"{limit['name']}: the limit {allowed} {_VERDICTS.get(limit['verdict'], limit['verdict'])}"
    said += f"; measured {measured}" if measured else ""
    said += f"; bounds {bounds}" if " to " in bounds else f"; bound {bounds}"
    said += f"; {limit['why']}" if limit.get("why") else ""
    return said + (f"; about {needed} images would decide it" if needed else "")


def limit_figures(limit: Json) -> tuple[str, str, str, str]:
    """What LIMIT_COLUMNS name, in the limit's unit; of an older bundle the one bound that it kept."""
    name, lower, upper, needed = limit["name"], limit.get("lower"), limit.get("upper"), limit.get("images_needed")
    one = lower is None or upper is None
    bounds = in_unit(name, limit["value"]) if one else f"{in_unit(name, lower)} to {in_unit(name, upper)}"
    return in_unit(name, limit["limit"]), in_unit(name, limit.get("measured")), bounds, f"{needed:,}" if needed else ""


def hop_name(hop: Json) -> str:
    return f"{hop['from']} → {hop['to']}"


def hop_row(hop: Json) -> tuple[str, ...]:
    """A hop under HOP_COLUMNS; what was not measured is a dash."""
    target = " ".join(str(x) for x in (hop.get("target"), hop.get("precision")) if x)
    lower, upper = hop.get("drop_lower_pp"), hop.get("drop_upper_pp")
    bounds = "–" if lower is None or upper is None else f"{_unsigned_zero(lower):.2f} to {_unsigned_zero(upper):.2f}"
    return (
        hop_name(hop),
        target,
        str(hop.get("path") or ""),
        _figure(hop.get("images"), ",d"),
        f"{_share(hop.get('top1_before'))} → {_share(hop.get('top1_after'))}",
        _figure(hop.get("drop_pp"), ".2f"),
        bounds,
        _figure(hop.get("p_value"), ".2g"),
        _share(hop.get("agreement")),
        _figure(hop.get("mean_kl"), ".2g"),
        _figure(hop.get("logit_cosine"), ".5f"),
        _share(hop.get("token_overlap")),
        _share(hop.get("router_agreement")),
    )


def not_measured(hops: list[Json]) -> tuple[str, ...]:
    """Why token overlap is missing somewhere, each reason once."""
    reasons = (h.get("token_overlap_not_measured") for h in hops)
    return tuple(dict.fromkeys(reason for reason in reasons if reason))


def causes(attribution: Json) -> tuple[tuple[str, int | None], ...]:
    """Why images were lost: (cause in words, how many; None where it was not measured)."""
    found = attribution.get("lost_by") or {}
    rows: list[tuple[str, int | None]] = []
    if "router_flip" in found:
        rows.append(("sent to another branch by the router", found["router_flip"]))
    if "token_choice" in found:
        rows.append(("other tokens kept", found["token_choice"]))
    rows += [(f"quantization of {branch}", count) for branch, count in (found.get("quantization") or {}).items()]
    return tuple(rows)


def lost_and_won(attribution: Json) -> str:
    """One target's balance."""
    return f"{attribution.get('lost', 0)} images lost, {attribution.get('won', 0)} won"


def attribution_said(attribution: Json) -> str:
    """One target's balance, and why images were lost."""
    parts = [f"{'not measured' if n is None else n} {cause}" for cause, n in causes(attribution)]
    return lost_and_won(attribution) + (f"; of the lost {', '.join(parts)}" if parts and attribution.get("lost") else "")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}%"


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(_unsigned_zero(value), form)


def _unsigned_zero(value: float) -> float:
    """0 in place of what would be shown as −0.00."""
    return 0 if abs(value) < 5e-3 and value < 0 else value
