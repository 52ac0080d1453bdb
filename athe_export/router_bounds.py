"""The bounds of int8 routers, fitted on their own scores, and what any other bounds would have cost and given."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from athe_export.bundle.manifest import FrontierPoint, GraphEntry, Manifest
from athe_export.bundle.reader import Bundle, open_bundle
from athe_export.bundle.writer import StagedBundle
from athe_export.parity.statistics import paired_difference
from athe_export.runtime.predictor import open_session
from athe_export.runtime.routing import RouterPolicy, Scores, match_policy, policy_for_share
from athe_export.system import HOLDOUT, Prepared

FRONTIER_POINTS = 40  # of each curve, at equal steps of the easiest branch's share; the bounds in use come on top


def fit_routers(staged: StagedBundle, prepared: Prepared, manifest: Manifest) -> Manifest:
    """The manifest with bounds of their own for int8 routers, and with the frontier of every router.

    An int8 router's bounds are matched to the reference's decisions, on the images that the reference's were fitted on.
    Bounds that the recipe states as numbers hold for every engine. Where those in use surely lose more than the recipe
    allows, a note says so.
    """
    if manifest.router is None or prepared.routing.policy is None:
        return manifest
    bundle, bounds = open_bundle(staged.folder), dict(manifest.router.bounds)
    curves, held, notes = {}, prepared.routing.held_out, list(manifest.notes)
    if held is not None:
        entry = next(g for g in manifest.graphs if g.role == "router")
        curves["reference"] = _frontier(prepared, manifest, entry, held.scores, bounds["reference"])
    for entry in (g for g in manifest.graphs if g.role == "router" and g.precision == "int8"):
        scores, held_scores = _scores(bundle, entry, prepared)
        if scores is not None:
            decided = prepared.routing.policy.branches_of(prepared.routing.scores)
            bounds[entry.target] = match_policy(scores, decided, len(manifest.branches)).bounds
        if held is not None and held_scores is not None:
            policy = RouterPolicy(bounds[entry.target])
            notes += broken_promise(entry.target, held_scores, held.correct(), policy, _allowed_pp(prepared))
            curves[entry.target] = _frontier(prepared, manifest, entry, held_scores, bounds[entry.target])
    images = {} if held is None else {"split": HOLDOUT, "images": len(held.ids)}
    router = manifest.router._replace(bounds=bounds, frontier=curves, frontier_images=images)
    return manifest._replace(router=router, notes=tuple(notes))


def frontier(
    scores: Scores, correct: npt.NDArray[np.bool_], mmacs: tuple[float, ...], chosen: RouterPolicy
) -> tuple[FrontierPoint, ...]:
    """Accuracy against cost over bounds, from no image on the easiest branch to all of them.

    The easiest branch's share goes up in equal steps and the others have equal parts of the rest, as a recipe's
    `share_simple` asks; with two branches there is no other way. Coarse scores give fewer points.

    Args:
        scores: a router's difficulty, float32 [n].
        correct: whether each branch is right, bool [n, branches], easiest first.
        mmacs: of an image on each branch, with the router's.
        chosen: the bounds in use, which are a point of the curve.
    """
    branches = correct.shape[1]
    shares = np.linspace(0, 1, FRONTIER_POINTS + 1)
    policies = {chosen.bounds: chosen}
    for policy in (policy_for_share(scores, float(share), branches) for share in shares):
        policies.setdefault(policy.bounds, policy)
    apart: dict[tuple[float, ...], FrontierPoint] = {}
    for point in (_point(policy, scores, correct, mmacs, policy is chosen) for policy in policies.values()):
        apart.setdefault(point.share, point)  # other bounds between the same two scores are no other point
    return tuple(sorted(apart.values(), key=lambda p: p.share))


def broken_promise(
    target: str, scores: Scores, correct: npt.NDArray[np.bool_], policy: RouterPolicy, allowed_pp: float | None
) -> list[str]:
    """A note where a router loses more top-1 against the hardest branch alone than allowed, even by its lower 95% bound.

    Args:
        target: whose router it is.
        scores: its difficulty, float32 [n].
        correct: whether each branch is right, bool [n, branches], easiest first.
        policy: the bounds in use.
        allowed_pp: the recipe's `max_drop_pp`; None where it asks for something else.
    """
    routed, hardest = correct[np.arange(len(scores)), policy.branches_of(scores)], correct[:, -1]
    lost, won = int((hardest & ~routed).sum()), int((routed & ~hardest).sum())
    if allowed_pp is None or 100 * paired_difference(lost, won, len(scores), 0.95).lower <= allowed_pp:
        return []
    found = 100 * (lost - won) / len(scores)
    return [
        f"{target}: with the int8 router {found:.2f} pp of top-1 are lost against the hardest branch alone on held-out "
        f"images, where the recipe allows {allowed_pp:g}: its scores are too coarse; keep it float (keep_float: router.*)"
    ]


def _point(
    policy: RouterPolicy, scores: Scores, correct: npt.NDArray[np.bool_], mmacs: tuple[float, ...], chosen: bool
) -> FrontierPoint:
    routed = policy.branches_of(scores)
    share = np.bincount(routed, minlength=len(mmacs)) / len(scores)
    top1 = float(correct[np.arange(len(scores)), routed].mean())
    rounded = tuple(round(float(s), 6) for s in share)
    return FrontierPoint(policy.bounds, rounded, round(top1, 6), round(float(share @ np.asarray(mmacs)), 3), chosen)


def _allowed_pp(prepared: Prepared) -> float | None:
    spec = prepared.file.recipe.router
    assert spec is not None
    return spec.threshold.max_drop_pp


def _frontier(
    prepared: Prepared, manifest: Manifest, router: GraphEntry, scores: Scores, bounds: tuple[float, ...]
) -> tuple[FrontierPoint, ...]:
    held = prepared.routing.held_out
    assert held is not None
    of_role = {g.role: g.mmacs for g in manifest.graphs if g.target == router.target}
    mmacs = tuple(router.mmacs + of_role[b.name] for b in manifest.branches)
    return frontier(scores, held.correct(), mmacs, RouterPolicy(bounds))


def _scores(bundle: Bundle, entry: GraphEntry, prepared: Prepared) -> tuple[Scores | None, Scores | None]:
    """A router graph's scores of the images that its bounds are fitted on (None where the recipe states the bounds), and of
    the held-out images of the frontier; the same images are run once."""
    routing, spec = prepared.routing, prepared.file.recipe.router
    assert spec is not None
    session, preprocessing = open_session(bundle, entry), prepared.images.preprocessing

    def run(split: str, ids: tuple[int, ...]) -> Scores:
        sources = (preprocessing.source(prepared.dataset.image(split, i)) for i in ids)
        given = (preprocessing.graph_input(s, session.input_shape) for s in sources)
        return np.array([session.run(g).reshape(-1)[0] for g in given], np.float32)

    held = None if routing.held_out is None else tuple(int(i) for i in routing.held_out.ids)
    held_scores = None if held is None else run(HOLDOUT, held)
    if spec.threshold.fixed is not None:
        return None, held_scores
    if held_scores is not None and (routing.split, routing.ids) == (HOLDOUT, held):
        return held_scores, held_scores
    return run(routing.split, routing.ids), held_scores
