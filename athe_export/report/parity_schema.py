"""JSON Schema of the `parity` object: what `verify --json` and `build --json` print, and what a manifest keeps.

Only what every bundle holds is required. Fields of newer versions come on top, so none is refused.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
_VERDICT: Schema = {"enum": ["pass", "fail", "inconclusive"]}
_NAME: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_SHARE_OR_NULL: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
_POINTS: Schema = {"type": ["number", "null"], "minimum": -100, "maximum": 100}
_NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}


def _object(said: str, required: tuple[str, ...], **properties: Schema) -> Schema:
    return {"type": "object", "description": said, "required": list(required), "properties": properties}


def _list(items: Schema, said: str) -> Schema:
    return {"type": "array", "description": said, "items": items}


def _by_name(values: Schema, said: str) -> Schema:
    return {"type": "object", "description": said, "additionalProperties": values}


_ROUTED = _object("Who answered what.", ("branch", "answer"), branch=_NAME, answer=_COUNT)
_CHANGED = _object(
    "An image whose answer changed.", ("id", "label", "cause", "before", "after"), id=_COUNT, label=_COUNT, cause=_NAME,
    before=_ROUTED, after=_ROUTED,
)  # fmt: skip
_ATTRIBUTION = _object(
    "Images that were lost (right in fp32, wrong on the target) and won, by cause.",
    ("lost", "won", "lost_by", "worst_classes", "changed"),
    lost=_COUNT,
    won=_COUNT,
    lost_by=_object(
        "One cause an image; token_choice is null where it was not measured.",
        ("router_flip", "token_choice", "quantization"),
        router_flip=_COUNT,
        token_choice={"type": ["integer", "null"], "minimum": 0},
        quantization=_by_name(_COUNT, "By branch."),
    ),
    token_choice_not_measured=_NAME,
    worst_classes=_list(
        _object("A class.", ("label", "images", "lost", "won"), label=_COUNT, images=_COUNT, lost=_COUNT, won=_COUNT),
        "Those that lost most.",
    ),
    changed=_list(_CHANGED, "All of them, ids as positions in the gate's split."),
)
_BRANCH = _object(
    "A branch on the images that the target sent to it, against the same branch in fp32.", ("images",), images=_COUNT,
    reference_top1=_SHARE_OR_NULL, top1=_SHARE_OR_NULL, drop_pp=_POINTS, agreement=_SHARE_OR_NULL,
)  # fmt: skip
_TARGET = _object(
    "One system against the routed fp32 reference.",
    ("top1", "drop_pp", "drop_bound_pp", "agreement", "router_agreement", "share", "branches"),
    reference_top1=_SHARE,
    top1=_SHARE,
    drop_pp=_POINTS,
    drop_bound_pp=_POINTS,
    drop_lower_bound_pp=_POINTS,
    agreement=_SHARE,
    router_agreement=_SHARE,
    router_flips=_COUNT,
    max_logit_difference=_NUMBER_OR_NULL,
    share=_by_name(_SHARE, "Of the images, by branch."),
    branches=_by_name(_BRANCH, "By branch."),
    attribution=_ATTRIBUTION,
)
_LIMIT = _object(
    "One limit: value is the bound held against it; images_needed would decide what is inconclusive.",
    ("name", "limit", "value", "verdict"),
    name=_NAME,
    limit={"type": "number"},
    value={"type": "number"},
    verdict=_VERDICT,
    measured=_NUMBER_OR_NULL,
    lower=_NUMBER_OR_NULL,
    upper=_NUMBER_OR_NULL,
    images=_COUNT,
    images_needed={"type": ["integer", "null"], "minimum": 1},
    why=_NAME,
)
_HOP: Schema = _object(
    "One step from torch to the device, routed or of one branch, on the same images before and after.",
    ("from", "to", "target", "precision", "path", "images"),
    to=_NAME,
    target=_NAME,
    precision={"enum": ["int8", "fp32"]},
    path=_NAME,
    images=_COUNT,
    top1_before=_SHARE_OR_NULL,
    top1_after=_SHARE_OR_NULL,
    drop_pp=_POINTS,
    drop_lower_pp=_POINTS,
    drop_upper_pp=_POINTS,
    p_value=_SHARE_OR_NULL,
    agreement=_SHARE_OR_NULL,
    mean_kl=_NUMBER_OR_NULL,
    logit_cosine=_NUMBER_OR_NULL,
    token_overlap=_SHARE_OR_NULL,
    token_overlap_not_measured=_NAME,
    token_images=_COUNT,
    router_agreement=_SHARE_OR_NULL,
    **{"from": _NAME},
)
_BETWEEN = _object(
    "Two targets against each other.", ("targets", "precision", "agreement"), targets=_list(_NAME, "Two."), precision=_NAME,
    agreement=_SHARE, router_agreement=_SHARE, max_logit_difference=_NUMBER_OR_NULL,
)  # fmt: skip

PARITY_SCHEMA: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "athe-export parity",
    **_object(
        "The outcome of the parity gate.",
        ("images", "verdict", "reference", "targets", "limits"),
        images=_COUNT,
        verdict=_VERDICT,
        confidence=_SHARE,
        reference=_object("The routed fp32 system.", ("top1",), top1=_SHARE),
        targets=_by_name(_TARGET, "By the system's name."),
        limits=_list(_LIMIT, "Each with its verdict; the worst is the gate's."),
        hops=_list(_HOP, "In order from torch to the device."),
        between=_list(_BETWEEN, "Each two targets at the same precision."),
        findings=_list(_NAME, "Where a limit that does not hold was missed."),
        notes=_list(_NAME, "What the gate could not do."),
    ),
}
