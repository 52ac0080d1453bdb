"""A parity object written by hand, as a gate of two targets gives it: what reports are made from."""

from __future__ import annotations

from typing import Any


def parity_example() -> dict[str, Any]:
    """ONNX passes, LiteRT's drop is undecided and its agreement fails; every documented field is there."""
    return {
        "images": 2000,
        "verdict": "fail",
        "confidence": 0.95,
        "reference": {"top1": 0.812},
        "targets": {
            "onnx": _target(top1=0.811, drop=0.1, bounds=(-0.24, 0.44), flips=6, attribution=_attribution(5, 3)),
            "litert": _target(top1=0.806, drop=0.6, bounds=(0.05, 1.15), flips=14, attribution=_attribution(61, 49)),
        },
        "limits": [
            _limit("onnx.max_top1_drop_pp", 0.7, 0.44, "pass", -0.24, 0.44),
            _limit("onnx.min_agreement", 0.97, 0.9812, "pass", 0.9812, 0.9899),
            _limit("onnx.min_router_agreement", 0.99, 0.9942, "pass", 0.9942, 0.9984),
            _limit("onnx.simple.max_top1_drop_pp", 0.7, -0.9, "pass", -0.9, 0.6),
            _limit("onnx.complex.max_top1_drop_pp", 0.7, -0.5, "pass", -0.5, 1.1),
            _limit("litert.max_top1_drop_pp", 0.7, 1.15, "inconclusive", 0.05, 1.15, 60500),
            _limit("litert.min_agreement", 0.97, 0.9391, "fail", 0.9391, 0.9552),
            _limit("litert.min_router_agreement", 0.99, 0.9897, "inconclusive", 0.9897, 0.9956, 2700),
            _limit("litert.simple.images", 1, 0, "inconclusive", None, None),
        ],
        "hops": [
            *_hops("torch fp32", "exported fp32", "onnx", "fp32", 0.0),
            *_hops("exported fp32", "int8", "onnx", "int8", 0.1),
            *_hops("torch fp32", "exported fp32", "litert", "fp32", 0.0),
            *_hops("exported fp32", "int8", "litert", "int8", 0.6),
            *_hops("onnx", "litert", "litert", "int8", 0.5),
        ],
        "findings": ["onnx to litert: the simple branch keeps 98% of its answers"],
        "notes": [],
        "between": [
            {"targets": ["onnx", "litert"], "precision": "int8", "agreement": 0.95, "router_agreement": 0.992,
             "max_logit_difference": 0.81}
        ],
    }  # fmt: skip


def _target(
    top1: float, drop: float, bounds: tuple[float, float], flips: int, attribution: dict[str, Any]
) -> dict[str, Any]:
    branch = {"images": 1000, "reference_top1": 0.8, "top1": 0.8, "drop_pp": 0.0, "agreement": 0.98}
    return {
        "reference_top1": 0.812, "top1": top1, "drop_pp": drop, "drop_bound_pp": bounds[1], "drop_lower_bound_pp": bounds[0],
        "agreement": 0.98, "router_agreement": 1 - flips / 2000, "router_flips": flips, "max_logit_difference": 0.7,
        "share": {"simple": 0.6, "complex": 0.4}, "branches": {"simple": dict(branch), "complex": dict(branch)},
        "attribution": attribution,
    }  # fmt: skip


def _attribution(lost: int, won: int) -> dict[str, Any]:
    """Images 0 to `lost` are lost, the next `won` are won, two more stay wrong; causes in turn."""
    causes = ("router_flip", "quantization", "quantization", "token_choice")
    changed = []
    for i in range(lost + won + 2):
        label = 7 * i % 100
        right, wrong, other = label, (label + 1) % 100, (label + 2) % 100
        before, after = (right, wrong) if i < lost else (wrong, right) if i < lost + won else (wrong, other)
        flip = causes[i % 4] == "router_flip"
        changed.append(
            {"id": 3 * i, "label": label, "cause": causes[i % 4],
             "before": {"branch": "simple", "answer": before},
             "after": {"branch": "complex" if flip else "simple", "answer": after}}
        )  # fmt: skip
    by_cause = [
        sum(c["cause"] == cause for c in changed[:lost]) for cause in ("router_flip", "token_choice", "quantization")
    ]
    return {
        "lost": lost, "won": won,
        "lost_by": {"router_flip": by_cause[0], "token_choice": by_cause[1],
                    "quantization": {"simple": by_cause[2], "complex": 0}},
        "worst_classes": [{"label": 7, "images": 20, "lost": 2, "won": 0}, {"label": 14, "images": 20, "lost": 1, "won": 1}],
        "changed": changed,
    }  # fmt: skip


def _limit(
    name: str, limit: float, value: float, verdict: str, lower: float | None, upper: float | None, needed: int | None = None
) -> dict[str, Any]:
    return {"name": name, "limit": limit, "value": value, "verdict": verdict, "lower": lower, "upper": upper, "images": 2000,
            "images_needed": needed, "measured": None if lower is None or upper is None else (lower + upper) / 2}  # fmt: skip


def _hops(start: str, end: str, target: str, precision: str, drop: float) -> list[dict[str, Any]]:
    """Routed and by branch; token overlap is known of the branches alone."""
    hops = []
    for path in ("routed", "simple", "complex"):
        hop = {
            "from": start, "to": end, "target": target, "precision": precision, "path": path, "images": 2000,
            "top1_before": 0.812, "top1_after": 0.812 - drop / 100, "drop_pp": drop, "drop_lower_pp": drop - 0.4,
            "drop_upper_pp": drop + 0.4, "p_value": 0.3, "agreement": 0.98, "mean_kl": 0.0031, "logit_cosine": 0.9987,
            "token_overlap": None if path == "routed" else 0.97, "token_images": 500,
        }  # fmt: skip
        if path == "routed":
            hop |= {"router_agreement": 0.995, "token_overlap_not_measured": "branches keep different numbers of tokens"}
        hops.append(hop)
    return hops
