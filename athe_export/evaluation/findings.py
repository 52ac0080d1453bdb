"""What was found, in words: every sentence is made from figures of the document, and says less than its interval allows.

A finding is a win, a loss, a trade-off, open (not told apart), or a note on what the figures are worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from athe_export.evaluation.latency import times_as_fast

WIN, LOSS, TRADE, OPEN, NOTE = "win", "loss", "trade-off", "open", "note"
Row = Mapping[str, Any]
_STRONGEST = 5


def findings(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """`kind` and `text` of every finding: of each adaptive system, then of the others, then on what all this is worth."""
    rows = [r for r in document["systems"] if r["primary"]]
    found = [
        *_adaptive(document, [r for r in rows if r["deployed"]]),
        *_routers(rows),
        *_branches(rows),
        *_front(document["systems"]),
        *_robust(document),
        *_worth(document),
    ]
    return [{"kind": kind, "text": text} for kind, text in found]


Finding = tuple[str, str]


def _adaptive(document: Mapping[str, Any], rows: list[Row]) -> Iterator[Finding]:
    """Each system with a router against the dense model and against every other trained system of its target."""
    dense = document["dense"]
    for own in (r for r in rows if r["policy"] == "learned" and r["trained"]):
        others = [r for r in rows if r["trained"] and r is not own and r["target"] == own["target"]]
        for other in sorted(others, key=lambda r: r["recipe"] != dense):
            yield _compared(own, other, dense)


def _compared(own: Row, other: Row, dense: str | None) -> Finding:
    if other["recipe"] == dense and own["times_as_fast_as_dense"] and own["top1_minus_dense_pp"]:
        speed, accuracy = own["times_as_fast_as_dense"], own["top1_minus_dense_pp"]
        said = [_speed(speed), _points(accuracy)]
        faster, better = _side(speed, 1.0), _side(accuracy, 0.0)
    else:
        if own["latency_ms"] is None or other["latency_ms"] is None:
            return OPEN, f"{_name(own)} and {_name(other)} were not timed beside each other."
        ratio = _ratio(own, other)
        difference = 100 * (own["top1"]["value"] - other["top1"]["value"])
        faster, better = _side(ratio, 1.0), _apart(own["top1"], other["top1"])
        unsure = "" if better else ", which the images do not tell from none"
        said = [_speed(ratio), f"its top-1 is {abs(difference):.1f} points {_higher(difference)}{unsure}"]
    called = "the dense model" if other["recipe"] == dense else _name(other)
    verdict = _verdict(faster, better)
    return verdict, f"Against {called}, {_name(own)}: {said[0]}; {said[1]}. {_said_of(verdict)}"


def _ratio(own: Row, other: Row) -> dict[str, float]:
    """How many times as fast, run by run; they shared every run."""
    return times_as_fast(own["latency_ms"]["runs"], other["latency_ms"]["runs"]).to_json(4)


def _verdict(faster: int, better: int) -> str:
    if faster * better < 0:
        return TRADE
    total = faster + better
    return WIN if total > 0 else LOSS if total < 0 else OPEN


def _said_of(verdict: str) -> str:
    return {
        WIN: "A win: better in one and not measurably worse in the other.",
        LOSS: "A loss: worse in one and not measurably better in the other.",
        TRADE: "A trade of one for the other.",
        OPEN: "Neither was told apart.",
    }[verdict]


def _routers(rows: list[Row]) -> Iterator[Finding]:
    """Each router against chance at its own shares, and against the best that could be."""
    for own in (r for r in rows if r["policy"] == "learned" and r["top1"]):
        same = {r["policy"]: r for r in rows if r["system"] == own["system"]}
        gain = own["top1_minus_random_pp"]
        kind = {1: WIN, -1: LOSS, 0: OPEN}[_side(gain, 0.0)]
        share = f"{100 * own['share_easiest']:.0f}% of the images take the easiest branch"
        if kind == OPEN:
            text = f"{_name(own)}: {share}; that its router chooses them better than chance is not shown: {_points(gain)}."
        else:
            word = "better" if kind == WIN else "worse"
            text = f"{_name(own)}: {share}; its router chooses them {word} than chance at the same share: {_points(gain)}."
        yield kind, text
        room = 100 * (same["oracle"]["top1"]["value"] - own["top1"]["value"])
        share = f"{100 * same['oracle']['share_easiest']:.0f}%"
        yield (
            NOTE,
            f"{_name(own)}: a router that always knew the easiest branch that is right would send {share} of the images to "
            f"the easiest one, and its top-1 would be {room:.1f} points higher.",
        )


def _branches(rows: list[Row]) -> Iterator[Finding]:
    """How fast each branch of a routed system is."""
    for own in (r for r in rows if r["policy"] == "learned"):
        fast = [r for r in rows if r["system"] == own["system"] and r["policy"].startswith("always ")]
        said = [
            f"{r['policy'].removeprefix('always ')} {_figure(r['times_as_fast_as_dense'])}"
            for r in fast
            if r["times_as_fast_as_dense"]
        ]
        if said:
            yield NOTE, f"{_name(own)}: times as fast as the dense model, each branch without the router: {', '.join(said)}."


def _front(rows: list[Row]) -> Iterator[Finding]:
    known = [r for r in rows if r["pareto"] is not None]
    front = sorted((r for r in known if r["pareto"]), key=lambda r: r["latency_ms"]["value"])
    if len(known) > 1:
        names = ", ".join(_name(r) for r in front)
        off = [_name(r) for r in known if not r["pareto"] and r["policy"] == "learned"]
        yield NOTE, f"On the Pareto front, from the fastest: {names}. It is drawn through the means, not their intervals."
        if off:
            yield LOSS, f"Not on it, though adaptive: {', '.join(off)}: another system is at least as accurate and as fast."


def _robust(document: Mapping[str, Any]) -> Iterator[Finding]:
    """Each adaptive system under the strongest corruption: against the dense model, and where its images go."""
    rows = [r for r in document["robustness"] if r["primary"] and r["share_easiest"] is not None]
    for clean in (r for r in rows if r["corruption"] == "none"):
        for worst in (r for r in rows if r["system"] == clean["system"] and r["strength"] == _STRONGEST):
            fallen = 100 * (clean["top1"]["value"] - worst["top1"]["value"])
            moved = f"{100 * clean['share_easiest']:.0f}% to {100 * worst['share_easiest']:.0f}%"
            text = (
                f"{_name(clean)} under {worst['corruption'].replace('_', ' ')} at strength {_STRONGEST}: top-1 changes by "
                f"{-fallen:+.1f} points, the share of the easiest branch from {moved}"
            )
            difference = worst["top1_minus_dense_pp"]
            if difference is None:
                yield NOTE, f"{text}."
                continue
            kind = {1: WIN, -1: LOSS, 0: OPEN}[_side(difference, 0.0)]
            yield kind, f"{text}; against the dense model on the same images, {_points(difference)}."


def _worth(document: Mapping[str, Any]) -> Iterator[Finding]:
    if document["quick"]:
        yield (
            NOTE,
            f"A quick evaluation: the first {document['images']['all']['images']} images, "
            f"{document['images']['robustness']['images']} of them corrupted, few queries a run, and small gates for what "
            "had to be built. Intervals are wide; nothing of it is a result to quote.",
        )
    for recipe in document["recipes"]:
        if recipe["verdict"] == "not_gated":
            yield (
                NOTE,
                f"{recipe['name']} is untrained and was not gated: its time and size count, accuracy was not measured.",
            )
        elif document["quick"] and recipe["verdict"] == "inconclusive":
            yield (
                NOTE,
                f"{recipe['name']}: a gate of {recipe['gate_images']} images does not decide its limits, all images may.",
            )
        elif recipe["verdict"] != "pass":
            yield (
                NOTE,
                f"{recipe['name']} did not pass its parity gate ({recipe['verdict']}): it is not deployable as it is.",
            )
    for left in document["not_built"]:
        yield LOSS, f"{left['recipe']} could not be built and is missing from all tables: {left['error']['message']}"
    if noise := document["machine"]["noise"]:
        yield (
            NOTE,
            f"The machine was not quiet while times were taken ({len(noise)} remarks): intervals hold that in part only.",
        )


def _side(found: Mapping[str, float], at: float) -> int:
    """1 where the whole interval lies above, -1 where it lies below, 0 where it does not tell."""
    return 1 if found["lower"] > at else -1 if found["upper"] < at else 0


def _apart(own: Mapping[str, float], other: Mapping[str, float]) -> int:
    """Whether two intervals lie apart: less than a test of pairs would show, never more."""
    return 1 if own["lower"] > other["upper"] else -1 if own["upper"] < other["lower"] else 0


def _speed(ratio: Mapping[str, float]) -> str:
    unsure = "" if _side(ratio, 1.0) else ", which the runs do not tell from 1"
    return f"{_figure(ratio)} times as fast{unsure}"


def _points(found: Mapping[str, float]) -> str:
    unsure = "" if _side(found, 0.0) else ", not told from 0"
    return f"{found['value']:+.1f} [{found['lower']:+.1f}, {found['upper']:+.1f}] points of top-1{unsure}"


def _figure(found: Mapping[str, float]) -> str:
    return f"{found['value']:.2f} [{found['lower']:.2f}, {found['upper']:.2f}]"


def _higher(difference: float) -> str:
    return "higher" if difference > 0 else "lower"


def _name(row: Row) -> str:
    """With the gate's verdict where that is no pass."""
    gate = "" if row["verdict"] == "pass" else f", gate {row['verdict']}"
    return f"{row['recipe']} ({row['target']} {row['precision']}{gate})"
