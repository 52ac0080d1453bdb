"""On the device: which target, precision and thread count answers soonest, measured, and only if it answers correctly."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from athe_export.bench.machine import Processor, processor
from athe_export.bench.protocol import Plan, Query, Ratio, lacking, measure, ratio, typical
from athe_export.bench.rows import ImageToLabel, mix_of, mixed, photos_by_branch
from athe_export.bench.tuned import Choice, remember
from athe_export.bundle.reader import Bundle, open_bundle
from athe_export.errors import EnvironmentFailure, GateFailed, MissingDependency
from athe_export.runtime.engines import remedy_for, unavailable
from athe_export.runtime.golden import check_graph, read_golden
from athe_export.runtime.predictor import RoutedGraphs, labels_of, preprocessing_of

PLAN = Plan(seconds=25.0, rounds=5, slice_s=0.1)  # with opening and checking all graphs under a minute
_MINUTE = 50.0  # of which so much may be gone before the last rounds
_ALIKE = 1.03  # of the fastest; among such, fewer threads leave more of the machine to others


@dataclass(frozen=True, order=True)
class Candidate:
    """One way to run the bundle."""

    target: str
    precision: str
    threads: int


@dataclass(frozen=True)
class Trial:
    """What became of a candidate: seconds of an image at the gate's mix, these over the choice's, or why it is left out."""

    candidate: Candidate
    seconds: float | None = None
    slower: Ratio | None = None
    why: str | None = None


@dataclass(frozen=True)
class Tuned:
    """The choice, everything that was tried, and where it is remembered."""

    choice: Choice
    trials: tuple[Trial, ...]
    path: Path

    def to_json(self) -> dict[str, Any]:
        chosen = {name: getattr(self.choice, name) for name in ("target", "precision", "threads")}
        return {
            "bundle": self.choice.bundle,
            "processor": self.choice.processor,
            "chosen": chosen,
            "remembered": str(self.path),
            "measured": [
                {
                    **vars(t.candidate),
                    "typical_ms": None if t.seconds is None else round(1e3 * t.seconds, 4),
                    "times_of_chosen": None if t.slower is None else {n: round(v, 3) for n, v in vars(t.slower).items()},
                    "left_out": t.why,
                }
                for t in self.trials
            ],
        }


def thread_counts(cpus: int) -> tuple[int, ...]:
    """1, 2, 4 and so on, and all CPUs."""
    counts = {1, cpus}
    while (more := 2 * max(c for c in counts if c < cpus or c == 1)) < cpus:
        counts.add(more)
    return tuple(sorted(counts))


def tune_bundle(
    path: Path,
    progress: Callable[[float], None] = lambda share: None,
    plan: Plan | None = None,
    here: Processor | None = None,
) -> Tuned:
    """Measures every system of a bundle that can run here, with each thread count, and remembers the fastest.

    A candidate whose graphs do not repeat the golden answers with as many threads is left out.

    Raises:
        BundleIntegrityError: the bundle is not whole.
        MissingDependency: no target of it can run here, or there is no user cache.
        GateFailed: none answers as it did where the bundle was built.
        EnvironmentFailure: the cache cannot be written.
    """
    plan = plan or PLAN
    start, bundle, here = time.monotonic(), open_bundle(path), here or processor()
    bundle.check()
    shares = mix_of(bundle.manifest, *bundle.manifest.systems[0])  # one mix for all, or they could not be compared
    queries, out = _candidates(bundle, here.cpus, shares)
    if not queries:
        raise _useless(bundle, out)
    left = max(0.0, _MINUTE - (time.monotonic() - start))
    run = measure(queries, dataclasses.replace(plan, seconds=min(plan.seconds, left)), progress=progress)
    rare = {kind for c in queries for kind in lacking(run.series[c], shares)}  # too few queries to meet such an image
    shares = {kind: share for kind, share in shares.items() if kind not in rare}
    seconds = {c: typical(run.series[c], shares) for c in queries}
    best = fastest(seconds)
    trials = [Trial(c, seconds[c], ratio(run.series[c], run.series[best], shares, shares)) for c in sorted(queries)]
    trials += [Trial(c, why=why) for c, why in sorted(out.items())]
    choice = Choice(best.target, best.precision, best.threads, bundle.manifest.name, bundle.digest, here.key)
    return Tuned(choice, tuple(trials), remember(choice))


def fastest(seconds: Mapping[Candidate, float]) -> Candidate:
    """The quickest; of those within 3% of it the one with the fewest threads, and of these the quickest."""
    alike = [c for c, s in seconds.items() if s <= _ALIKE * min(seconds.values())]
    return min(alike, key=lambda c: (c.threads, seconds[c]))


def _candidates(
    bundle: Bundle, cpus: int, shares: Mapping[str, float]
) -> tuple[dict[Candidate, Query], dict[Candidate, str]]:
    """Those that answer correctly, ready to be timed, and why the others are out."""
    why, stored = unavailable(bundle.manifest.targets), read_golden(bundle)
    queries: dict[Candidate, Query] = {}
    out: dict[Candidate, str] = {}
    for target, precision in bundle.manifest.systems:
        for threads in thread_counts(cpus):
            candidate = Candidate(target, precision, threads)
            try:
                found = why.get(target) or _ready(bundle, candidate, stored, shares)
            except (MissingDependency, EnvironmentFailure) as err:
                found = f"{err.what}; {err.remedy}"
            if isinstance(found, str):
                out[candidate] = found
            else:
                queries[candidate] = found
    return queries, out


def _ready(
    bundle: Bundle, candidate: Candidate, stored: dict[str, npt.NDArray[Any]], shares: Mapping[str, float]
) -> Query | str:
    """A query of the candidate; or what it answers wrongly. `stored` is what `read_golden` gives."""
    graphs = RoutedGraphs(bundle, candidate.target, candidate.precision, candidate.threads)
    for role, entry in graphs.entries.items():
        result = check_graph(bundle, entry, stored, graphs.session(role))
        if not result.passed:
            return f"{role} differs from the golden outputs by {result.max_abs_diff:.3g}, {result.tolerance:g} is allowed"
    preprocessing = preprocessing_of(bundle.manifest)
    photos = photos_by_branch(graphs, preprocessing, list(stored["images"]))
    if absent := [name for name, share in shares.items() if share and name not in photos]:
        return f"no golden image is routed to {', '.join(absent)} here"
    return ImageToLabel(graphs, preprocessing, mixed(photos, shares), labels_of(bundle))


def _useless(bundle: Bundle, out: Mapping[Candidate, str]) -> MissingDependency | GateFailed:
    said = "\n".join(f"  {c.target} {c.precision}, {c.threads} threads: {why}" for c, why in sorted(out.items()))
    missing = unavailable(bundle.manifest.targets)
    if all(c.target in missing for c in out):
        remedy = remedy_for(bundle.manifest.targets)
        return MissingDependency(f"no target of the bundle can run here:\n{said}", where=str(bundle.path), remedy=remedy)
    return GateFailed(
        f"nothing answers here as it did where the bundle was built:\n{said}",
        where=str(bundle.path),
        remedy="athe-export verify says what differs and what to install",
    )
