"""`run --watch` and `run --camera`: what the loop of live use finds, as JSON lines or for a person."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from athe_export import console
from athe_export.errors import AtheExportError, ImageError, UsageError
from athe_export.live.stream import Item, Source, Stop, Summary, classify_live
from athe_export.report.rows import gate_said
from athe_export.runtime.predictor import Prediction


def check_source(images: list[Path], watch: Path | None, camera: str | None, duration: float | None) -> None:
    """
    Raises:
        UsageError: not exactly one of images, a folder and a camera, or a duration of images.
    """
    given = [
        name for name, value in (("images", images), ("--watch", watch), ("--camera", camera)) if value not in (None, [])
    ]
    if len(given) != 1:
        what = "no images are given" if not given else " and ".join(given) + " cannot be read at once"
        raise UsageError(what, where="run", remedy="give images, or --watch DIR, or --camera SOURCE")
    if duration is not None and given == ["images"]:
        raise UsageError(
            "--duration ends a watch or a camera", where="--duration", remedy="add --watch DIR or --camera SOURCE"
        )


def run_live(
    predictor: Any,
    notes: list[str],
    watch: Path | None,
    camera: str | None,
    duration: float | None,
    branch: str,
    top: int,
    as_json: bool,
) -> None:
    """Opens the source and tells every answer until it ends, the time is over or a signal comes.

    Raises:
        UsageError: there is no such branch.
        BundleIntegrityError: a graph is not what the manifest promises.
        AtheExportError: of the source, with the summary so far beside it.
    """
    predictor.check_branch(branch)
    predictor.graphs.open()  # all of them now: the bundle may be gone when the first image of a branch comes
    notes = [*notes, *predictor.graphs.notes]
    teller: _Lines | _Screen = _Lines() if as_json else _Screen()
    stop, summary = Stop(duration), Summary()
    with stop.listening():
        source = _opened(watch, camera)
        left = getattr(source, "there_before", 0)
        teller.begin(predictor, notes, str(watch or camera), left)
        try:
            classify_live(predictor, source, stop, teller.tell, branch, top, summary)
        except AtheExportError as err:
            err.report = {"summary": summary.to_json()}
            raise
        finally:
            source.close()
            teller.end()
    teller.sum_up(summary)


def _opened(watch: Path | None, camera: str | None) -> Source:
    if watch is not None:
        from athe_export.live.folder import WatchedFolder

        return WatchedFolder(watch)
    from athe_export.live.camera import open_camera

    assert camera is not None
    return open_camera(camera)


class _Lines:
    """A JSON object a line: what is used, every answer, and a summary at the end."""

    def begin(self, predictor: Any, notes: list[str], source: str, left: int) -> None:
        not_run = [{"target": t, "why": w} for t, w in predictor.passed_over.items()]
        used = {"target": predictor.target, "not_run": not_run, "notes": notes, "there_before": left}
        gate = predictor.bundle.manifest.verdict
        console.print_json_line({"source": source, "gate_at_build": gate, **used})

    def tell(self, item: Item, found: Prediction | ImageError) -> None:
        line: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "image": item.name}
        if item.frame is not None:
            line["frame"] = item.frame
        if isinstance(found, ImageError):
            console.print_json_line({**line, "error": found.to_json()})
            return
        console.print_json_line({**line, **found.to_json()})

    def end(self) -> None:
        pass

    def sum_up(self, summary: Summary) -> None:
        console.print_json_line({"summary": summary.to_json()})


class _Screen:
    """Label, branch and milliseconds; of a camera, a line where one of the first two changes."""

    def __init__(self) -> None:
        self._ticker, self._watch = console.Ticker(), console.Watch()

    def begin(self, predictor: Any, notes: list[str], source: str, left: int) -> None:
        self._watch.line(f"target {predictor.target}; reading {source} until Ctrl-C")
        if left:
            self._watch.line(f"{left} files that are there already are left alone")
        not_used = [f"{t} is not used: {why}" for t, why in predictor.passed_over.items()]
        for note in (*not_used, *notes):
            self._watch.line(f"note: {note}")
        if (gate := predictor.bundle.manifest.verdict) != "pass":
            self._watch.line(gate_said(gate))

    def tell(self, item: Item, found: Prediction | ImageError) -> None:
        if isinstance(found, ImageError):
            self._watch.line(f"not read: {item.name}: {found.what}")
            return
        said = f"{found.label} {100 * found.probability:.1f}%, branch {found.branch}, {found.ms:.1f} ms"
        if item.frame is None:
            console.say(f"{item.name}: {said}")
            for note in found.notes:
                self._watch.line(f"note: {item.name}: {note}")
        else:
            self._ticker.show((found.label, found.branch), f"frame {item.frame}: {said}")

    def end(self) -> None:
        self._ticker.end()

    def sum_up(self, summary: Summary) -> None:
        by_branch = ", ".join(f"{name} {count:,}" for name, count in summary.by_branch.items())
        mean = f", {summary.ms / summary.images:.1f} ms an image" if summary.images else ""
        lost = f", {summary.broken:,} not read" * bool(summary.broken) + f", {summary.skipped:,} skipped" * bool(
            summary.skipped
        )
        said = f"{summary.images:,} images ({by_branch or 'none'}){mean}{lost}"
        self._watch.line(f"{said} in {summary.seconds:.0f} s; ended by {summary.ended}")
