"""Which layers stay float: the rule that both targets share, so that one list serves both."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

from athe_export.errors import RecipeError
from athe_export.recipe import Targets

ALWAYS = ("scorers.*",)  # a flipped choice of tokens costs more than such a small layer saves


def kept_float(layers: Iterable[str], globs: tuple[str, ...]) -> list[str]:
    """Those of a graph's layers (torch module names) that stay float: the token scorers, and what a glob matches."""
    return matching(layers, (*ALWAYS, *globs))


def matching(layers: Iterable[str], globs: Iterable[str]) -> list[str]:
    """Those of a graph's layers that a glob matches, in their order."""
    return [layer for layer in layers if any(fnmatch.fnmatchcase(layer, g) for g in globs)]


def require_layers(targets: Targets, layers: Mapping[str, tuple[str, ...]]) -> None:
    """Checks every target's lists of layers before anything is traced.

    Args:
        layers: names by role, of the router and every branch.

    Raises:
        RecipeError: a glob matches no layer, or nothing of a branch that should be int8 is left to quantize.
    """
    names = sorted({name for of_role in layers.values() for name in of_role})
    for target in targets.names:
        spec = getattr(targets, target)
        for role, own in layers.items():
            if role != "router" and "int8" in spec.precisions and len(kept_float(own, spec.quantize.keep_float)) == len(own):
                raise RecipeError(
                    f"keep_float leaves nothing of branch {role} to quantize",
                    where=f"targets.{target}.quantize.keep_float",
                    remedy="shorten the list, or ask for precisions: [fp32]",
                )
        _require_match("keep_float", spec.quantize.keep_float, names, target, "of any branch, nor of the router")
        of_branches = sorted({name for role, own in layers.items() if role != "router" for name in own})
        _require_match("dynamic", getattr(spec.quantize, "dynamic", ()), of_branches, target, "of any branch")


def _require_match(key: str, globs: Iterable[str], names: Sequence[str], target: str, of: str) -> None:
    for glob in globs:
        if not matching(names, (glob,)):
            raise RecipeError(
                f"{key} {glob!r} matches no layer {of}",
                where=f"targets.{target}.quantize.{key}",
                remedy="layers are: " + ", ".join(names[:12]) + " …",
            )
