"""Whether live use keeps its memory flat: `athe-export run --camera`, or --watch, over many images.

python scripts/soak.py BUNDLE [--images 50000] [--through camera|watch] [--target auto] [--json F]

The command runs in a process of its own, as a service would run it, and reads a video of generated images, or images that
are put into a folder and removed once they are answered. Its resident memory (VmRSS) is read as answers come. Flat means
that the last tenth of the samples lies less than 2% or 2 MB above the second tenth, whichever is more; of fewer than 10,000
images, in which a leak has less time, 1 MB. The first tenth fills caches. The camera needs OpenCV (pip install
"athe-export[camera]").
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from athe_export.data.shapes import Shapes

SIDE = 64
SAMPLES = 200
PICTURES = 50  # different ones, in turn
BATCH = 200  # images that lie in the folder at once
ROOM_MB, ROOM = 2.0, 0.02
SHORT, SHORT_ROOM_MB = 10_000, 1.0


def growth(megabytes: list[float], images: int) -> tuple[float, float]:
    """(growth, what is allowed) in MB over so many images: medians of the last and the second tenth of the samples.

    Raises:
        ValueError: fewer than 20 samples.
    """
    tenth = len(megabytes) // 10
    if tenth < 2:
        raise ValueError(f"{len(megabytes)} samples of memory are too few: soak for longer")
    before, after = statistics.median(megabytes[tenth : 2 * tenth]), statistics.median(megabytes[-tenth:])
    return after - before, SHORT_ROOM_MB if images < SHORT else max(ROOM_MB, ROOM * before)


def pictures() -> list[np.ndarray]:
    """Generated images, RGB uint8 [64, 64, 3]."""
    return [np.asarray(Image.fromarray(Shapes().image("test", i)).resize((SIDE, SIDE))) for i in range(PICTURES)]


def video(path: Path, frames: int) -> None:
    """Writes generated images as a video of so many frames."""
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (SIDE, SIDE))
    images = [np.ascontiguousarray(image[:, :, ::-1]) for image in pictures()]
    for number in range(frames):
        writer.write(images[number % PICTURES])
    writer.release()


def resident_mb(process: int) -> float:
    """Resident memory of a process in 10^6 bytes."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"process {process} has no memory any more")


def through_camera(command: list[str], folder: Path, images: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(process, answer) for every frame."""
    video(folder / "soak.avi", images)
    with subprocess.Popen([*command, "--camera", str(folder / "soak.avi")], stdout=subprocess.PIPE, text=True) as process:
        yield from _answers(process)


def through_folder(command: list[str], folder: Path, images: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(process, answer) for every image that was put into the folder."""
    made, files = pictures(), []
    with subprocess.Popen([*command, "--watch", str(folder)], stdout=subprocess.PIPE, text=True) as process:
        answers = _answers(process)
        yield next(answers)
        while len(files) < images:
            batch = [folder / f"{len(files) + n}.png" for n in range(min(BATCH, images - len(files)))]
            for number, path in enumerate(batch):
                Image.fromarray(made[number % PICTURES]).save(part := path.with_name(f".{path.name}"), "PNG")
                part.replace(path)
            for _ in batch:
                process_id, answer = next(answers)
                Path(answer["image"]).unlink()
                yield process_id, answer
            files += batch
        process.terminate()
        yield from answers


def _answers(process: subprocess.Popen[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield process.pid, json.loads(line)
    if process.wait() != 0:
        raise SystemExit(f"the command ended with code {process.returncode}")


def soak(bundle: Path, images: int, through: str, target: str) -> dict[str, Any]:
    """Runs the command over so many images: memory as they went, its growth, whether that is flat, and the summary."""
    command = [sys.executable, "-m", "athe_export.cli", "run", str(bundle), "--target", target, "--json"]
    every, megabytes, count, summary = max(1, images // SAMPLES), [], 0, {}
    with tempfile.TemporaryDirectory() as folder:
        source = {"camera": through_camera, "watch": through_folder}[through]
        for process, answer in source(command, Path(folder), images):
            summary = answer.get("summary", summary)
            count += "label" in answer
            if "label" in answer and count % every == 0 and count < images:
                megabytes.append(resident_mb(process))
    grown, allowed = growth(megabytes, images)
    whole = count == images == summary["images"] and not summary["broken"]
    found = {"growth_mb": round(grown, 3), "allowed_mb": round(allowed, 3), "flat": grown <= allowed, "whole": whole}
    return {"through": through, "images": count, **found, "megabytes": megabytes, "summary": summary}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--through", choices=("camera", "watch"), default="camera")
    parser.add_argument("--target", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    args = parser.parse_args()
    found = soak(args.bundle, args.images, args.through, args.target)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    low, high = min(found["megabytes"]), max(found["megabytes"])
    print(
        f"{found['images']:,} images through {args.through}: {low:.1f} to {high:.1f} MB resident; grown by "
        f"{found['growth_mb']:.2f} MB, {found['allowed_mb']:.2f} allowed: {'flat' if found['flat'] else 'NOT FLAT'}"
    )
    if not found["whole"]:
        sys.exit(f"not every image was answered: {found['summary']}")
    sys.exit(0 if found["flat"] else 1)


if __name__ == "__main__":
    main()
