"""The smallest set of layers to keep float: they are taken in order of sensitivity until the drop holds, then put back.

Phase 1 ranks the layers (`sensitivity.py`) and phase 2 walks the ranking, as in Pandey et al., A Practical Mixed Precision
Algorithm for Post-Training Quantization, 2023 (arXiv:2302.05397); here from the other end, since few layers are expected
to need it: 1, 2, 4, ... layers kept float, then bisection between the last two (Bentley and Yao, An almost optimal
algorithm for unbounded searching, Information Processing Letters 5, 1976). Phase 3 tries to do without each layer of the
set that was found: what remains is a set of which no single layer can be given back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from athe_export.parity.limits import INCONCLUSIVE, PASS
from athe_export.precision.subject import Clock, TimeUp
from athe_export.precision.trial import Bench, Limits, Trial

MET, EXHAUSTED, MINUTES, INTERRUPTED = "met", "exhausted", "minutes", "interrupted"


@dataclass(frozen=True)
class Found:
    """The outcome of a search: what to keep float, whether that holds the limits, how the search ended, every trial.

    `ended` is `met` or `exhausted` where the search ran to its end, `minutes` where its time was up, `interrupted` where
    Ctrl-C ended it. `order` is the ranking it walked; empty where every layer int8 was good enough.
    """

    keep_float: tuple[str, ...]
    met: bool
    ended: str
    order: tuple[str, ...]
    trials: tuple[Trial, ...]
    limits: Limits

    def to_json(self) -> dict[str, Any]:
        return {
            "limits": vars(self.limits),
            "keep_float": list(self.keep_float),
            "met": self.met,
            "ended": self.ended,
            "order": list(self.order),
            "trials": [trial.to_json() for trial in self.trials],
        }

    def said(self) -> str:
        """The outcome in a sentence, with the list as it is written into a recipe."""
        listed = "[" + ", ".join(f'"{name}"' for name in self.keep_float) + "]"
        how = {
            MET: "",
            EXHAUSTED: "; no set of layers that was tried holds the limits",
            MINUTES: "; its minutes were up",
            INTERRUPTED: "; it was interrupted",
        }[self.ended]
        best = next((t for t in self.trials if t.keep_float == self.keep_float), None)
        if best is None:
            return f"automatic precision made no trial{how}: keep_float: {listed}"
        drop = f"drop at most {best.drop_pp.upper:.2f} pp on {best.counts.images} held-out images"
        short = ""
        if best.verdict == INCONCLUSIVE:
            needed = f"about {best.images_needed}" if best.images_needed else "more than there can be"
            short = f", too few to decide (it would take {needed})"
        word = "holds its limits" if self.met else "does not hold its limits"
        return f"automatic precision {word}{how}: keep_float: {listed}, {drop}{short}, {len(self.trials)} trials"


def search(bench: Bench, ranking: Callable[[Clock], tuple[str, ...]], minutes: float) -> Found:
    """Finds the smallest set of layers to keep float.

    Every layer int8 is tried whatever the time, so that there is always something to say. Time that is up, and Ctrl-C, end
    the search in order with the best so far.

    Args:
        bench: makes and remembers trials.
        ranking: gives the layers, the most sensitive first; asked only where every layer int8 does not do.
        minutes: how long the search may take.
    """
    clock = Clock(minutes)
    order: tuple[str, ...] = ()
    try:
        first = bench.trial((), Clock())
        if first.holds(bench.limits):
            ended = MET
        else:
            order = ranking(clock)
            _shrink(bench, _grow(bench, order, clock), clock)
            ended = MET if _best(bench).holds(bench.limits) else EXHAUSTED
    except TimeUp:
        ended = MINUTES
    except KeyboardInterrupt:
        ended = INTERRUPTED
    if not bench.trials:
        return Found((), False, ended, order, (), bench.limits)
    best = _best(bench)
    return Found(best.keep_float, best.holds(bench.limits), ended, order, bench.trials, bench.limits)


def _grow(bench: Bench, order: tuple[str, ...], clock: Clock) -> tuple[str, ...]:
    """The shortest run of the ranking's first layers at which the drop holds; empty where none does."""
    most = max((n for n in range(len(order) + 1) if bench.leaves_int8(order[:n])), default=0)
    fails, size = 0, 1
    while size <= most and bench.trial(order[:size], clock).verdict != PASS:
        fails, size = size, most if size < most < 2 * size else 2 * size
    if size > most:
        return ()
    while size - fails > 1:
        middle = (fails + size) // 2
        if bench.trial(order[:middle], clock).verdict == PASS:
            size = middle
        else:
            fails = middle
    return order[:size]


def _shrink(bench: Bench, keep: tuple[str, ...], clock: Clock) -> None:
    """Tries to do without each layer in turn, the least sensitive first."""
    for layer in reversed(keep):
        fewer = tuple(name for name in keep if name != layer)
        if fewer and bench.trial(fewer, clock).verdict == PASS:
            keep = fewer


def _best(bench: Bench) -> Trial:
    """The fewest layers of all trials that hold; where none does, the least drop of those that are not too slow."""
    limits = bench.limits
    held = [trial for trial in bench.trials if trial.holds(limits)]
    if held:
        return min(held, key=lambda t: (len(t.keep_float), t.drop_pp.upper))
    allowed = [t for t in bench.trials if t.slowdown is not None and t.slowdown <= limits.max_slowdown]
    return min(allowed or bench.trials, key=lambda t: (t.error is not None, t.drop_pp.upper, len(t.keep_float)))
