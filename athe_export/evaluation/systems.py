"""What is compared: a recipe's bundle at one target and precision; and what it costs as it lies there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from athe_export.bench.rows import mix_of
from athe_export.bundle.manifest import GraphEntry, Manifest
from athe_export.evaluation.bundles import RecipeBundle
from athe_export.evaluation.plan import EvaluationPlan
from athe_export.runtime.engines import resolve_target, unavailable

ROUTER = "router"
FLOPS_PER_MAC = 2


@dataclass(frozen=True)
class System:
    """A bundle at a target and a precision; `primary` is the one that `run` takes where nothing else is asked for."""

    of: RecipeBundle
    target: str
    precision: str
    primary: bool

    @property
    def key(self) -> str:
        """How it is called in files: `recipe/target/precision`."""
        return f"{self.of.name}/{self.target}/{self.precision}"

    @property
    def manifest(self) -> Manifest:
        return self.of.manifest

    @property
    def branches(self) -> tuple[str, ...]:
        return tuple(b.name for b in self.manifest.branches)

    @property
    def routed(self) -> bool:
        return self.manifest.router is not None

    @property
    def graphs(self) -> Mapping[str, GraphEntry]:
        """By role."""
        return self.manifest.graphs_of(self.target, self.precision)

    @property
    def bounds(self) -> tuple[float, ...]:
        """Of the router graph in use."""
        graph = self.graphs.get(ROUTER)
        return self.manifest.router_bounds(self.target, graph.precision) if graph else ()

    def mmacs(self, shares: Mapping[str, float], routed: bool) -> float:
        """Mean million multiply-accumulates of an image, counted from the graphs.

        Args:
            shares: of the images, by branch.
            routed: whether an image passes the router first.
        """
        graphs = self.graphs
        own = graphs[ROUTER].mmacs if routed else 0.0
        return own + sum(share * graphs[branch].mmacs for branch, share in shares.items())

    def bytes(self, branches: Sequence[str], routed: bool) -> int:
        """Size of the graph files that so many branches take, with the router's where images are routed."""
        graphs = self.graphs
        return sum(graphs[role].bytes for role in ([ROUTER] if routed else []) + list(branches))

    def built_shares(self) -> dict[str, float]:
        """Shares by branch as the build has found them; of untrained weights, those of the calibration images."""
        return mix_of(self.manifest, self.target, self.precision)


def systems_of(bundles: Sequence[RecipeBundle], plan: EvaluationPlan) -> tuple[list[System], list[dict[str, str]]]:
    """The systems that can run here, recipe by recipe, and those left out: `system` and `why`.

    Raises:
        MissingDependency: a bundle has no target that can run here.
    """
    systems: list[System] = []
    left_out: list[dict[str, str]] = []
    for of in bundles:
        main, _ = resolve_target(of.manifest, "auto")
        missing = unavailable(of.manifest.targets)
        for target, precision in of.manifest.systems:
            primary = (target, precision) == (main, of.manifest.precisions(main)[0])
            name = f"{of.name}/{target}/{precision}"
            if target in missing:
                left_out.append({"system": name, "why": missing[target]})
            elif plan.one_system and not primary:
                left_out.append({"system": name, "why": "--quick takes one system of each recipe"})
            else:
                systems.append(System(of, target, precision, primary))
    return systems, left_out


def dense_for(system: System, systems: Sequence[System], dense: str | None) -> System | None:
    """The dense recipe's system at the same target and precision."""
    wanted = (dense, system.target, system.precision)
    return next((s for s in systems if (s.of.name, s.target, s.precision) == wanted), None)
