"""The outcome as tables of words: the same in the HTML page, in Markdown and on a terminal; and as flat rows for CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_MEASURED = "not measured"
NO_LOG = "no power log was given"


@dataclass(frozen=True)
class Grid:
    """A table under its title; the first `words` columns are words, the others figures. A row of one cell is a heading."""

    title: str
    lead: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


def systems_grid(document: Mapping[str, Any]) -> Grid:
    """What is deployed: accuracy, time and cost of each."""
    log = document["energy"]
    metered = log is not None and log["refused"] is None
    energy = ("J an image",) if metered else ()
    why = f"the power log was refused: {log['refused']}" if log else NO_LOG
    said = "" if metered else f" Energy was not measured: {why}."
    columns = ("system", "gate", "top-1, %", "against dense, points", "ms an image", "× as fast as dense", "MFLOPs", "MB")
    rows = []
    for number, row in enumerate(deployed(document), 1):
        pareto = {None: "", True: "on it", False: ""}[row["pareto"]]
        joules = (interval(row["energy_j"]) or NOT_MEASURED,) if metered else ()
        rows.append((f"{number}.\u00a0{system_name(row)}", row["verdict"], *_figures(row), *joules, pareto))
    lead = (
        f"Top-1 on {document['images']['all']['images']:,} images of {document['dataset']['name']} "
        f"{document['dataset']['split']}; times are means over {document['plan']['runs']} runs that all systems shared. "
        "In brackets, 95% intervals." + said
    )
    return Grid("Systems", lead, (*columns, *energy, "Pareto front"), tuple(rows), words=2)


def _figures(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        percent(row["top1"]) if row["top1"] else NOT_MEASURED,
        points(row["top1_minus_dense_pp"]),
        interval(row["latency_ms"]) if row["latency_ms"] else NOT_MEASURED,
        interval(row["times_as_fast_as_dense"]),
        f"{row['mflops']:,.0f}" if row["mflops"] >= 100 else f"{row['mflops']:.1f}",
        f"{row['bytes'] / 1e6:.2f}",
    )


def subset_grid(document: Mapping[str, Any]) -> Grid | None:
    """The balanced subset and its halves."""
    rows = [r for r in deployed(document) if r["subset"]]
    if not rows:
        return None
    subset = document["images"]["subset"]
    cells = []
    for row in rows:
        halves = row["subset"]
        top = [percent(halves[name]["top1"]) for name in ("all", "simple", "complex")]
        share = [f"{100 * halves[name]['share_easiest']:.1f}%" for name in ("simple", "complex")]
        routed = row["policy"] == "learned"
        cells.append((system_name(row), row["verdict"], *top, *(share if routed else ("", ""))))
    columns = ("system", "gate", "top-1", "simple half", "complex half", "simple: to easiest", "complex: to easiest")
    lead = (
        f"{subset['simple']['images']} simple and {subset['complex']['images']} complex images, drawn from the easier and "
        f"the harder half of {subset['judged']:,}: {subset['judge']} in fp32 finds their true class more or less probable. "
        "The first column estimates top-1 on all images without a bias; the halves lean to that model, the dense one's own "
        "above all."
    )
    return Grid("The balanced subset", lead, columns, tuple(cells), words=2)


def routers_grid(document: Mapping[str, Any]) -> Grid | None:
    """Every way of routing over the same branches."""
    learned = [r for r in document["systems"] if r["policy"] == "learned" and r["top1"]]
    if not learned:
        return None
    rows: list[tuple[str, ...]] = []
    for own in learned:
        rows.append((f"{system_name(own)}, gate: {own['verdict']}",))
        for row in (r for r in document["systems"] if r["system"] == own["system"]):
            share = f"{100 * row['share_easiest']:.1f}%"
            cells = _figures(row)
            rows.append((row["policy"], share, cells[0], points(row["top1_minus_random_pp"]), *cells[1:5]))
    columns = ("router", "to easiest", "top-1", "against random", "against dense", "ms an image", "× as fast", "MFLOPs")
    lead = (
        "learned: the bundle's own. oracle: the easiest branch that is right, which no router can beat. random: by chance "
        "with the learned router's shares. always: one branch, no router. All are reckoned from the same answers and times."
    )
    return Grid("Routers", lead, columns, tuple(rows))


def branches_grid(document: Mapping[str, Any]) -> Grid | None:
    """How fast each branch is."""
    rows = [
        (system_name(r), r["policy"].removeprefix("always "), r["verdict"], *_figures(r)[2:6])
        for r in document["systems"]
        if r["policy"].startswith("always ")
    ]
    columns = ("system", "branch", "gate", "ms an image", "× as fast as dense", "MFLOPs", "MB")
    lead = "Every image through that branch, without the router."
    return Grid("Speed by branch", lead, columns, tuple(rows), words=3) if rows else None


def confusion_grids(document: Mapping[str, Any]) -> list[Grid]:
    """What each router chose against what was needed."""
    grids = []
    for router in (r for r in document["routers"] if r["primary"]):
        branches = router["branches"]
        rows: list[tuple[str, ...]] = [("by the easiest branch that is right",)]
        rows += [(c["needs"], *_sent(c, branches)) for c in router["confusion"]]
        if router["against_judge"]:
            rows.append(("by the judge of the balanced subset",))
            rows += [(c["judged"], *_sent(c, branches)) for c in router["against_judge"]]
        columns = ("image needs", "images", *(f"sent to {b}" for b in branches))
        grids.append(Grid(f"{router['system']}, gate: {router['verdict']}", "", columns, tuple(rows)))
    return grids


def _sent(cell: Mapping[str, Any], branches: Sequence[str]) -> tuple[str, ...]:
    images = cell["images"]
    return (f"{images:,}", *(f"{cell['sent'][b]:,} ({100 * cell['sent'][b] / max(1, images):.0f}%)" for b in branches))


def calibration_grids(document: Mapping[str, Any]) -> list[Grid]:
    """What each router's score says, and what was so, by groups of images."""
    grids = []
    for router in (r for r in document["routers"] if r["primary"]):
        first, last = router["branches"][0], router["branches"][-1]
        rows = [
            (
                *(str(number), f"{group['images']:,}", f"{group['score']:.3f}", percent(group["needed"])),
                *(f"{100 * group[name]:.1f}" for name in ("easiest", "hardest")),
            )
            for number, group in enumerate(router["calibration"], 1)
        ]
        columns = ("group", "images", "score", "harder branch needed, %", f"top-1 of {first}, %", f"top-1 of {last}, %")
        title = f"{router['system']}, gate: {router['verdict']}: images in groups by score"
        grids.append(Grid(title, "", columns, tuple(rows)))
    return grids


def examples_grid(document: Mapping[str, Any]) -> Grid | None:
    """Images of both halves of the subset."""
    if not document["examples"]:
        return None
    routers = list(document["examples"][0]["sent"])
    rows = [
        (e["half"], str(e["id"]), e["class"], f"{100 * e['probability']:.0f}", *(e["sent"][name] for name in routers))
        for e in document["examples"]
    ]
    columns = ("judged", "id", "class", "probability, %", *(f"{name} sends it to" for name in routers))
    lead = f"Evenly over the probability that {document['images']['subset']['judge']} in fp32 gives the true class."
    return Grid("Simple and complex images", lead, columns, tuple(rows), words=3)


def robustness_grid(document: Mapping[str, Any]) -> Grid | None:
    """Top-1, and the share of the easiest branch, by corruption and strength."""
    if not document["robustness"]:
        return None
    rows: list[tuple[str, ...]] = []
    for name, of in document["corruptions"].items():
        levels = ", ".join(f"{level:g}" for level in of["levels"])
        rows.append((f"{name.replace('_', ' ')}: {levels} ({of['unit']})",))
        for system in dict.fromkeys(r["system"] for r in document["robustness"]):
            own = [r for r in document["robustness"] if r["system"] == system and r["corruption"] in ("none", name)]
            cells = [f"{100 * r['top1']['value']:.1f}%" + _share(r) for r in sorted(own, key=lambda r: r["strength"])]
            rows.append((system_name(own[0]), own[0]["verdict"], *cells))
    count = document["robustness"][0]["images"]
    lead = f"Top-1 on {count:,} images; of routed systems, after the stroke, the share that the easiest branch gets."
    return Grid("Robustness", lead, ("system", "gate", "clean", *(str(s) for s in range(1, 6))), tuple(rows), words=2)


def _share(row: Mapping[str, Any]) -> str:
    return "" if row["share_easiest"] is None else f" / {100 * row['share_easiest']:.0f}%"


def recipes_grid(document: Mapping[str, Any]) -> Grid:
    """What was evaluated."""
    rows = []
    for r in document["recipes"]:
        gate = f"{r['verdict']}, {r['gate_images']:,} images" if r["gate_images"] else r["verdict"]
        top1 = "" if r["reference_top1"] is None else f"{100 * r['reference_top1']:.1f}%"
        weights = (r["checkpoint_sha256"] or "untrained")[:12]
        made = "made by evaluate" if r["made_by_evaluate"] else ""
        rows.append((r["name"], gate, made, top1, r["recipe_sha256"][:12], weights, r["bundle_digest"][:12]))
    rows += [(x["recipe"], "not built", "", "", "", "", "") for x in document["not_built"]]
    columns = ("recipe", "gate", "", "fp32 top-1", "recipe sha256", "weights sha256", "bundle digest")
    return Grid("Recipes", "fp32 top-1 is the torch reference's, on the gate's images.", columns, tuple(rows), words=3)


def commands(document: Mapping[str, Any]) -> list[str]:
    """What has measured the cells, each once in the order that `cells_grid` numbers; then what builds each bundle again."""
    return [*_measured_by(document), *(r["command"] for r in document["recipes"])]


def _measured_by(document: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(cell["command"] for cell in document["cells"]))


def cells_grid(document: Mapping[str, Any]) -> Grid:
    """What every figure comes from."""
    by = _measured_by(document)
    rows = [
        (
            *(cell["file"], cell["sha256"][:12], _of(cell), cell["made"]),
            *("before" if cell["reused"] else "now", str(1 + by.index(cell["command"]))),
        )
        for cell in document["cells"]
    ]
    lead = (
        "Rows of the CSV files name the keys of their cells; a file's name has the beginning of its key. A cell is measured "
        "again if its file is removed. Commands are numbered as above."
    )
    return Grid("Cells", lead, ("file", "sha256", "of", "made", "measured", "command"), tuple(rows), words=5)


def _of(cell: Mapping[str, Any]) -> str:
    depends = cell["depends"]
    if cell["kind"] == "latency":
        return f"run {depends['run'] + 1}, {len(depends['systems'])} systems"
    if cell["kind"] == "power":
        return f"pattern of load for {depends['log']}, {len(depends['systems'])} systems"
    corruption = depends["corruption"]
    shown = "" if corruption is None else f", {corruption['name']} {corruption['strength']}"
    return f"bundle {depends['bundle'][:12]}, {depends['target']} {depends['precision']}{shown}"


def deployed(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of what bundles do by themselves: they are numbered in this order."""
    return [row for row in document["systems"] if row["deployed"]]


def system_name(row: Mapping[str, Any]) -> str:
    return f"{row['recipe']}, {row['target']} {row['precision']}"


def percent(found: Mapping[str, float]) -> str:
    """A share with its interval."""
    return f"{100 * found['value']:.1f} [{100 * found['lower']:.1f}, {100 * found['upper']:.1f}]"


def points(found: Mapping[str, float] | None) -> str:
    """A difference in percentage points with its interval."""
    return "" if found is None else f"{found['value']:+.1f} [{found['lower']:+.1f}, {found['upper']:+.1f}]"


def interval(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['value']:.3g} [{found['lower']:.3g}, {found['upper']:.3g}]"


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of JSON as CSV: nested fields under dotted names, lists as one field with spaces, null as nothing."""
    flat = [dict(_flat(row)) for row in rows]
    named = list(dict.fromkeys(name for row in flat for name in row))
    columns = [
        name for name in named if not any(other.startswith(f"{name}.") for other in named)
    ]  # null in place of several
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue()


def _flat(row: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", " ".join(map(str, value)) if isinstance(value, list) else value
