"""What a person sees: progress, tables, one-message errors. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from athe_export.bundle.manifest import Manifest
from athe_export.errors import AtheExportError
from athe_export.report.precision_section import (
    SENSITIVITY_COLUMNS,
    TRIAL_COLUMNS,
    keep_float_line,
    search_of,
    sensitivity_of,
    trial_rows,
)
from athe_export.report.rows import COLUMNS, delegated, gate_said, percent, table

if TYPE_CHECKING:  # verify pulls in an engine, which most verbs do without
    from athe_export.verify import VerifyReport


class _Diagnostics(Console):
    def on_broken_pipe(self) -> None:
        """Where nobody reads the progress any more, the work goes on in silence; Rich would end the program."""
        self.quiet = True


out = Console(soft_wrap=False)
err = _Diagnostics(stderr=True)


class Watch:
    """Live progress on a terminal, plain lines elsewhere; use as a context manager."""

    def __init__(self) -> None:
        self._live = err.is_terminal
        self._shown: tuple[str, int] = ("", -1)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=err, transient=True)
        self._task: Any = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._progress.stop()

    def stage(self, name: str) -> None:
        """A new stage begins."""
        err.print(f"[bold]{escape(name)}[/bold]" if self._live else name, highlight=False)
        self._drop_task()

    def progress(self, step: str, done: int, total: int) -> None:
        """`done` of `total` in a step of the current stage."""
        if not self._live:
            tenth = 10 * done // max(1, total)
            if (step, tenth) != self._shown and tenth in (5, 10):
                err.print(f"  {step}: {done}/{total}", highlight=False)
            self._shown = (step, tenth)
            return
        if self._task is None or self._shown[0] != step:
            self._drop_task()
            self._progress.start()  # not before: it would wipe away what ssh asks on the terminal
            self._task = self._progress.add_task(f"  {step}", total=total)
            self._shown = (step, 0)
        self._progress.update(self._task, completed=done, total=total)

    def share(self, step: str) -> Callable[[float], None]:
        """What is told the share of a step that is done."""
        return lambda done: self.progress(step, int(100 * done), 100)

    def line(self, text: str) -> None:
        """A line that stays."""
        err.print(text, highlight=False, markup=False, soft_wrap=True)

    def _drop_task(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


def print_json(document: dict[str, Any]) -> None:
    """The one document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def print_json_line(document: dict[str, Any]) -> None:
    """One of several documents, a line each, seen at once by whoever reads them."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


class Ticker:
    """Lines of which the last is written over as long as it says the same; where no terminal is, it stands but once."""

    def __init__(self) -> None:
        self._said: object = None

    def show(self, said: object, text: str) -> None:
        """`text` with its figures, `said` what of it is worth a line of its own."""
        if out.is_terminal:
            line = "" if self._said in (None, said) else "\n"
            sys.stdout.write(f"{line}\r{text[: out.width - 1]}\x1b[K")
            sys.stdout.flush()
        elif said != self._said:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        self._said = said

    def end(self) -> None:
        """Ends the last line."""
        if out.is_terminal and self._said is not None:
            sys.stdout.write("\n")


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], title: str = "") -> None:
    grid = Table(title=title or None, title_justify="left")
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index < 2 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*map(escape, row))
    (out if out.is_terminal else Console(width=160)).print(grid)


def print_tables(tables: Iterable[tuple[str, tuple[str, ...], list[tuple[str, ...]]]], lines: Iterable[str]) -> None:
    """Tables of (title, columns, rows), and lines below them."""
    for title, columns, rows in tables:
        print_table(columns, rows, title)
    for line in lines:
        say(line)


def say(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def print_error(error: AtheExportError, as_json: bool, in_lines: bool = False) -> None:
    """What, where, what next; on stdout too where JSON was asked for."""
    lines = [f"error: {error.what}"]
    lines += [f"  at: {error.where}"] if error.where else []
    lines.append(f"  next: {error.remedy}")
    err.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    if as_json:
        with contextlib.suppress(OSError):  # stdout itself may be what is broken
            (print_json_line if in_lines else print_json)({"error": error.to_json(), **error.report})


def print_build(output: Path, manifest: Manifest, seconds: float) -> None:
    """The table that ends a build, and what to do next."""
    for note in manifest.notes:
        say(f"note: {note}")
    print_table(COLUMNS, table(manifest), f"{manifest.name}: {manifest.verdict}")
    program = sys.argv[0] if sys.argv[0].endswith("/athe-export") else "athe-export"  # as it can be typed here
    say(f"built {output} in {seconds:.0f} s\n\nnext:")
    say(f"  {program} inspect {output}\n  {program} verify {output}\n  {program} run {output} YOUR_PHOTO.jpg")


def print_manifest(manifest: Manifest) -> None:
    print_table(COLUMNS, table(manifest), f"{manifest.name}: {manifest.verdict}")
    rows = []
    for g in manifest.graphs:
        shapes = f"{list(g.inputs[0].shape)} → {list(g.outputs[0].shape)}"
        rows.append((g.target, g.role, g.precision, shapes, str(g.int8_ops), str(g.float_ops), g.sha256[:12]))
    print_table(("target", "role", "precision", "shapes", "int8 ops", "float ops", "sha256"), rows)
    for g in (g for g in manifest.graphs if g.xnnpack):
        say(f"XNNPACK, {g.role} {g.precision}: {delegated(g)}")
    if manifest.router:
        bounds = ", ".join(f"{t}: {', '.join(f'{b:.4f}' for b in bs)}" for t, bs in manifest.router.bounds.items())
        say(f"router {manifest.router.arch} at {manifest.router.image_size} px, score bounds {bounds}")
    checkpoint = manifest.checkpoint["sha256"] or "untrained"
    say(f"checkpoint {checkpoint}\nrecipe {manifest.recipe['sha256']}\ndataset {manifest.dataset['name']}")
    say("tools " + ", ".join(f"{k} {v}" for k, v in manifest.tools.items()))
    for note in manifest.notes:
        say(f"note: {note}")


def print_precision(manifest: Manifest) -> None:
    """What int8 costs each layer, and every trial of a search for those to keep float."""
    rows = sensitivity_of(manifest)
    if rows:
        print_table(SENSITIVITY_COLUMNS, rows, "each layer alone in int8, the others float, on held-out images")
    for target in manifest.targets:
        if search := search_of(manifest, target):
            print_table(TRIAL_COLUMNS, trial_rows(search), f"{target}: search for layers to keep float")
            say(f"{target}: search ended: {search['ended']}; to repeat its outcome:\n  {keep_float_line(search)}")
    if not rows:
        say("single layers were not measured: add `sensitivity: {}` to targets.<target>.quantize and build again")


def print_verify(report: VerifyReport) -> None:
    rows = [
        (g.target, g.role, g.precision, "yes" if g.same_top1 else "NO", "yes" if g.bit_equal else "no",
         f"{g.max_abs_diff:.2g}", f"{g.tolerance:g}", "pass" if g.passed else "FAIL")
        for g in report.golden
    ]  # fmt: skip
    columns = ("target", "role", "precision", "same answers", "bit equal", "largest difference", "allowed", "golden")
    print_table(columns, rows)
    for note in (g.note for g in report.golden if g.note):
        say(f"note: {note}")
    for left in report.not_run:
        say(f"not run: {left.target}: {left.why} ({', '.join(left.files)})")
    if report.parity:
        say(f"parity on {report.parity.images} images: {report.parity.verdict}")
        for limit in report.parity.limits:
            say(f"  {limit.said()}")
        for pair in report.parity.between:
            difference = pair["max_logit_difference"]
            shown = "" if difference is None else f", logits differ by {difference:.3f} at most"
            say(f"  {' and '.join(pair['targets'])} {pair['precision']}: {percent(pair['agreement'])} same answers{shown}")
    if report.gate_at_build != "pass":
        say(gate_said(report.gate_at_build))
    say(f"verdict: {report.verdict}")


def print_results(
    results: list[dict[str, Any]], gate_at_build: str, target: str, not_run: list[dict[str, str]], notes: list[str]
) -> None:
    rows = []
    for r in results:
        score = "" if r["router_score"] is None else f"{r['router_score']:.3f}"
        best = ", ".join(f"{label} {100 * p:.0f}%" for label, p in r["top"][1:])
        rows.append((r["image"], r["label"], f"{100 * r['probability']:.1f}%", r["branch"], score, f"{r['ms']:.1f}", best))
    print_table(("image", "label", "probability", "branch", "router score", "ms", "then"), rows, f"target {target}")
    for note in (*(f"{left['target']} is not used: {left['why']}" for left in not_run), *notes):
        say(f"note: {note}")
    for r in results:
        for note in r["notes"]:
            say(f"note: {r['image']}: {note}")
    if gate_at_build != "pass":
        say(gate_said(gate_at_build))


def print_plan(plan: dict[str, Any]) -> None:
    for key in ("name", "recipe", "output", "checkpoint", "dataset", "data_root", "calibration_images"):
        say(f"{key.replace('_', ' ')}: {plan[key]}")
    for branch in plan["branches"]:
        tokens = " → ".join(map(str, branch["tokens"]))
        say(f"branch {branch['name']}: {tokens} of {branch['of']} patch tokens, {branch['heads']} head(s)")
    say("stages: " + ", ".join(plan["stages"]) + ("" if plan["gated"] else "\nnot gated: the weights are untrained"))
    say("nothing was written")


def print_training(summary: dict[str, Any]) -> None:
    metrics = summary["metrics"]
    if summary["complete"]:
        print_table(("path", "test top-1"), [(name, f"{100 * value:.2f}%") for name, value in metrics["top1"].items()])
    elif last := metrics["last_epoch"]:
        say(f"{last['phase']} epoch {last['epoch']} of {last['of']} was the last that ended")
    say(f"{summary['checkpoint']}\nsha256 {summary['sha256']}")
    if not summary["complete"]:
        say("stopped before the plan's end, and not measured on the test split; continue with --resume")


def print_doctor(found: dict[str, Any]) -> None:
    print_table(("package", "version"), [(name, version or "not installed") for name, version in found["packages"].items()])
    for job in found["jobs"]:
        say(f"{job['job']}: " + ("ready" if job["ready"] else f"missing {', '.join(job['missing'])}: {job['remedy']}"))
    if found["data_root"]:
        say(
            f"ATHE_DATA_ROOT {found['data_root']}: "
            + ("CIFAR-100 found" if found["cifar100"] else "no cifar-100-python/train there, and no packed file")
        )
    elif found["cached"]:
        say(f"ATHE_DATA_ROOT is not set: CIFAR-100 is in the user cache, {found['cached']}")
    else:
        say("ATHE_DATA_ROOT is not set: CIFAR-100 would be downloaded to the user cache")
    for tuned in found["tuned"]:
        where = "" if tuned["here"] else ", on another processor or other CPUs"
        count = f"{tuned['threads']} thread(s)"
        say(f"tuned: {tuned['name']} {tuned['bundle'][:12]}: {tuned['target']} {tuned['precision']}, {count}{where}")
