"""What becomes of a router's bounds when it is int8: taken over, fitted anew by the rule, or matched to the reference.

python scripts/compare_router_fits.py BUNDLE [--data-root DIR] [--max-drop-pp 0.5] [--splits 20] [--images N] [--json]

BUNDLE holds an int8 router and reference.npz. Its gate images are cut into halves at random: bounds are fitted on one half
and measured on the other. Which branch is right is taken from the fp32 reference, so that nothing but the bounds differs.
Printed of each way, as the mean over the splits and from the lowest to the highest: share of the images that go to the
easiest branch, share routed as the reference routes, and top-1 lost against the hardest branch alone, in percentage points.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from athe_export.bundle.manifest import GraphEntry
from athe_export.bundle.reader import Bundle, open_bundle
from athe_export.data.source import open_dataset
from athe_export.errors import UsageError
from athe_export.parity.reference import Reference, read_reference
from athe_export.runtime.predictor import open_session, preprocessing_of
from athe_export.runtime.routing import RouterPolicy, Scores, match_policy, policy_for_drop

Half = npt.NDArray[np.int64]


def router_scores(bundle: Bundle, entry: GraphEntry, reference: Reference, data_root: Path | None) -> Scores:
    """The int8 router's difficulty of the reference's images, float32 [n]."""
    manifest, preprocessing, session = bundle.manifest, preprocessing_of(bundle.manifest), open_session(bundle, entry)
    name, split = manifest.dataset["name"], manifest.gate["split"]
    dataset = open_dataset(name, data_root, data_root if name == "folder" else None)
    sources = (preprocessing.source(dataset.image(split, int(i))) for i in reference.ids)
    return np.array(
        [session.run(preprocessing.graph_input(s, session.input_shape)).reshape(-1)[0] for s in sources], np.float32
    )


def fits(
    reference: Reference, scores: Scores, half: Half, max_drop_pp: float
) -> dict[str, tuple[RouterPolicy, RouterPolicy]]:
    """By way of fitting: the reference's policy on the half, and the int8 router's."""
    correct, branches = reference.correct()[half], reference.logits.shape[0]
    exact = policy_for_drop(reference.scores[half], correct, max_drop_pp)
    decided, own = exact.branches_of(reference.scores[half]), scores[half]
    return {
        "fp32 router": (exact, exact),
        "bounds taken over": (exact, exact),
        "rule applied again": (exact, policy_for_drop(own, correct, max_drop_pp)),
        "matched": (exact, match_policy(own, decided, branches)),
    }


def measured(
    reference: Reference, scores: Scores, half: Half, exact: RouterPolicy, policy: RouterPolicy
) -> dict[str, float]:
    """What a policy does to images that it was not fitted on."""
    routed, correct = policy.branches_of(scores[half]), reference.correct()[half]
    return {
        "share_simple": float((routed == 0).mean()),
        "router_agreement": float((routed == exact.branches_of(reference.scores[half])).mean()),
        "drop_pp": 100 * float(correct[:, -1].mean() - correct[np.arange(len(half)), routed].mean()),
    }


def compare(reference: Reference, scores: Scores, max_drop_pp: float, splits: int) -> dict[str, dict[str, list[float]]]:
    """By way of fitting and measure: lowest, mean and highest over the splits."""
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(splits):
        order = np.random.RandomState(seed).permutation(len(scores))
        fitted, other = order[: len(order) // 2], order[len(order) // 2 :]
        for name, (exact, policy) in fits(reference, scores, fitted, max_drop_pp).items():
            seen = reference.scores if name == "fp32 router" else scores
            rows.setdefault(name, []).append(measured(reference, seen, other, exact, policy))
    return {
        name: {key: [f([r[key] for r in found]) for f in (min, lambda x: float(np.mean(x)), max)] for key in found[0]}
        for name, found in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--max-drop-pp", type=float, default=0.5)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--images", type=int)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    bundle.check()
    stored = bundle.manifest.file_of("reference")
    routers = [g for g in bundle.manifest.graphs if g.role == "router" and g.precision == "int8"]
    if stored is None or not routers:
        raise UsageError("has no int8 router or no reference.npz", where=str(given.bundle), remedy="give another bundle")
    reference = read_reference(bundle.read(stored.path), stored.path).first(given.images)
    found: dict[str, Any] = {"images": len(reference.ids), "max_drop_pp": given.max_drop_pp, "targets": {}}
    for entry in routers:
        scores = router_scores(bundle, entry, reference, given.data_root)
        found["targets"][entry.target] = compare(reference, scores, given.max_drop_pp, given.splits)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    for target, ways in found["targets"].items():
        print(f"{target}, {found['images']} images in halves, at most {given.max_drop_pp:g} pp lost")
        for name, row in ways.items():
            simple, alike = (f"{100 * m:.1f}% ({100 * a:.1f} to {100 * b:.1f})" for a, m, b in list(row.values())[:2])
            low, mean, high = row["drop_pp"]
            print(f"  {name:24} simple {simple:24} alike {alike:25} lost {mean:.2f} pp ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
