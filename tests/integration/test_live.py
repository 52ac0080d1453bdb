"""`run --watch` and `run --camera` as they are used: processes of their own, real video files and streams, real signals."""

from __future__ import annotations

import contextlib
import http.server
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from athe_export.data.shapes import Shapes
from athe_export.runtime.predictor import Predictor
from tests.conftest import ROOT
from tests.tools import Outcome, blocked_python, cli, command, environment, error_of, refused, require_one_message

OLD = ROOT / "tests/bundles/v1/tiny"  # needs no build
SUMMARY = {"images", "by_branch", "broken", "skipped", "mean_ms", "slowest_ms", "seconds", "ended"}
_OPTIONS = ("run", OLD, "--target", "onnx")


def pictures(count: int) -> list[np.ndarray]:
    """Generated images that go to both branches of the bundle."""
    return [np.asarray(Image.fromarray(Shapes().image("test", i)).resize((64, 64))) for i in range(count)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 20 frames."""
    import cv2

    path = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 64))
    for image in pictures(20):
        writer.write(np.ascontiguousarray(image[:, :, ::-1]))
    writer.release()
    return path


def lines_of(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in outcome.out.splitlines()]


@contextlib.contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The command in the background; it is ended if the test did not."""
    line = [sys.executable, "-m", "athe_export.cli", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, env=environment(), **streams) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def next_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def write_whole(image: np.ndarray, path: Path) -> None:
    """As a careful program does: written beside, then renamed."""
    part = path.with_name(f".{path.name}.part")
    Image.fromarray(image).save(part, "PNG")
    part.replace(path)


# --- camera -----------------------------------------------------------------------------------------------------------


def test_every_frame_of_a_video_is_answered_as_its_pixels_are(clip: Path) -> None:
    import cv2

    done = cli(*_OPTIONS, "--camera", clip, "--json")
    assert done.code == 0, done.err
    first, *answers, last = lines_of(done)
    assert (first["source"], first["target"], first["gate_at_build"]) == (str(clip), "onnx", "pass")
    capture, predictor, expected = cv2.VideoCapture(str(clip)), Predictor.load(OLD, "onnx"), []
    while (read := capture.read())[0]:
        expected.append(predictor.predict(np.ascontiguousarray(read[1][:, :, ::-1])))  # OpenCV's frames have blue first
    assert [(a["frame"], a["label"], a["branch"], a["router_score"]) for a in answers] == [
        (number, found.label, found.branch, found.router_score) for number, found in enumerate(expected)
    ]
    assert len(answers) == 20 and all(a["ms"] > 0 and len(a["top"]) == 5 and a["time"] for a in answers)
    summary = last["summary"]
    assert set(summary) == SUMMARY and (summary["images"], summary["ended"]) == (20, "end")
    assert sum(summary["by_branch"].values()) == 20 and summary["skipped"] == 0


def test_numbered_images_are_read_to_their_end_as_a_video_is(tmp_path: Path) -> None:
    images = pictures(3)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"img{number:03d}.png")
    done = cli(*_OPTIONS, "--camera", tmp_path / "img%03d.png", "--json")
    assert done.code == 0, done.err
    _, *answers, last = lines_of(done)
    predictor = Predictor.load(OLD, "onnx")
    assert [a["label"] for a in answers] == [predictor.predict(image).label for image in images]
    assert (last["summary"]["images"], last["summary"]["ended"]) == (3, "end")


def test_a_person_sees_label_branch_and_milliseconds_where_they_change(clip: Path) -> None:
    shown = cli(*_OPTIONS, "--camera", clip)
    assert shown.code == 0
    lines = [line.partition(": ")[2].split(", ") for line in shown.out.splitlines()]
    said = [(label.rpartition(" ")[0], branch) for label, branch, ms in lines if ms.endswith(" ms")]
    assert len(said) == len(lines) > 1
    assert all(a != b for a, b in itertools.pairwise(said))
    assert "20 images" in shown.err and "ended by end" in shown.err


class _Stream(http.server.BaseHTTPRequestHandler):
    """Frames as MJPEG, fifty a second, for as long as the server says."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        jpegs = []
        for image in pictures(4):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG")
            jpegs.append(buffer.getvalue())
        frames = self.server.frames  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            for number in range(frames):
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + jpegs[number % 4] + b"\r\n")
                time.sleep(0.02)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def stream(frames: int) -> Iterator[str]:
    """The address of a stream that breaks off after so many frames."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Stream)
    server.frames = frames  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/stream.mjpg"
    finally:
        server.shutdown()
        server.server_close()


def test_a_stream_is_read_until_sigterm_and_then_ends_in_order() -> None:
    with stream(10_000) as address, running(*_OPTIONS, "--camera", address, "--json") as process:
        assert next_line(process)["source"] == address
        answers = [next_line(process) for _ in range(5)]
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None and process.stderr is not None
        rest, err = process.stdout.read().splitlines(), process.stderr.read()
        assert process.wait(20) == 0, err
    frames = [a["frame"] for a in answers]
    assert frames == sorted(set(frames))  # the newest whenever there is time for one, none twice
    summary = json.loads(rest[-1])["summary"]
    assert summary["ended"] == "SIGTERM" and summary["images"] >= 5 and err == ""


def test_a_stream_that_breaks_off_is_an_error_with_what_was_done_so_that_a_service_starts_again() -> None:
    with stream(30) as address:
        done = command(*_OPTIONS, "--camera", address, "--json")
    *answers, last = lines_of(done)
    assert done.code == 7 and len(answers) > 1
    assert (last["error"]["kind"], last["error"]["message"]) == ("environment", "the stream gives no more frames")
    assert last["summary"]["images"] == len(answers) - 1


def test_frames_that_are_too_many_are_skipped_and_counted() -> None:
    from athe_export.live.camera import Camera

    class Capture:
        """A camera that is quicker than whoever reads it: it gives 10 frames before the first is asked for."""

        def __init__(self) -> None:
            self.given, self.asked = 0, threading.Event()

        def read(self) -> tuple[bool, Any]:
            if self.given == 10:
                self.asked.wait()
                return False, None
            self.given += 1
            return True, np.full((8, 8, 3), self.given, np.uint8)

        def release(self) -> None:
            pass

    capture = Capture()
    camera = Camera(capture, "0", np.zeros((8, 8, 3), np.uint8), ("camera", "plug it in"))
    while capture.given < 10:
        time.sleep(0.001)
    time.sleep(0.05)
    item = camera.next(1.0)
    assert item is not None and (item.frame, camera.skipped) == (10, 10) and (np.asarray(item.image) == 10).all()
    assert camera.next(0.01) is None
    capture.asked.set()
    camera.close()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("0", "the camera cannot be opened"),
        ("1099511627776", "the camera cannot be opened"),
        ("²", "the source cannot be opened"),
        ("no-such.avi", "the source cannot be opened"),
        ("img%03d.png", "the source cannot be opened"),
        ("videotestsrc ! " + "no-such-element ! " * 20 + "appsink", "the source cannot be opened"),
        ("http://127.0.0.1:9/", "the stream cannot be opened"),
    ],
)
def test_a_source_that_is_not_there_is_one_message_and_exit_code_7(source: str, said: str, tmp_path: Path) -> None:
    if source == "0" and Path("/dev/video0").exists():
        pytest.skip("there is a camera here")
    shown = command(*_OPTIONS, "--camera", source, cwd=tmp_path)  # a process: OpenCV must not write to stderr beside it
    require_one_message(shown, 7)
    assert shown.err.startswith(f"error: {said}\n") and len(shown.err.splitlines()) == 3 and shown.out == ""


def test_a_file_that_is_no_video_is_one_message_and_exit_code_7(tmp_path: Path) -> None:
    (tmp_path / "no.avi").write_text("no video")
    shown = command(*_OPTIONS, "--camera", tmp_path / "no.avi", "--json")
    assert len(shown.out.splitlines()) == 1 and len(shown.err.splitlines()) == 3
    assert error_of(shown, 7, "environment")["where"] == str(tmp_path / "no.avi")


def test_without_opencv_the_camera_says_what_to_install_and_a_folder_needs_none(tmp_path: Path) -> None:
    shown = command(*_OPTIONS, "--camera", "0", "--json", blocked=["cv2"])
    error = error_of(shown, 6, "missing_dependency")
    assert "cv2" in error["message"] and error["remedy"] == 'pip install "athe-export[camera]"'
    assert command(*_OPTIONS, "--watch", tmp_path, "--duration", 0, blocked=["cv2"]).code == 0


def test_an_opencv_that_does_not_work_is_said(tmp_path: Path) -> None:
    (tmp_path / "cv2").mkdir()
    (tmp_path / "cv2" / "__init__.py").write_text("raise ImportError('libz.so: cannot open shared object file')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from athe_export.cli import main; main()"
    done = blocked_python(code, [], *_OPTIONS, "--camera", "0")
    require_one_message(Outcome(done.returncode, done.stdout, done.stderr), 6)
    assert "libz.so" in done.stderr and "athe-export[camera]" in done.stderr


# --- watch ------------------------------------------------------------------------------------------------------------


def test_every_image_that_comes_is_answered_and_broken_ones_are_named_and_counted(tmp_path: Path) -> None:
    images = pictures(3)
    write_whole(images[0], tmp_path / "before.png")
    with running(*_OPTIONS, "--watch", tmp_path, "--json") as process:
        assert next_line(process)["there_before"] == 1
        write_whole(images[1], tmp_path / "a.png")
        first = next_line(process)
        content = (tmp_path / "a.png").read_bytes()
        with (tmp_path / "slow.png").open("wb") as file:  # half written, for longer than a few looks
            file.write(content[: len(content) // 2])
            file.flush()
            time.sleep(0.7)
            file.write(content[len(content) // 2 :])
        second = next_line(process)
        (tmp_path / "broken.png").write_bytes(content[: len(content) // 2])
        third = next_line(process)
        write_whole(images[2], tmp_path / "a.png")  # in the place of the first
        fourth = next_line(process)
        process.send_signal(signal.SIGINT)
        last = next_line(process)
        assert process.wait(20) == 0
    names = [Path(line["image"]).name for line in (first, second, third, fourth)]
    assert names == ["a.png", "slow.png", "broken.png", "a.png"]
    assert third["error"]["kind"] == "image" and "label" not in third
    predictor = Predictor.load(OLD, "onnx")
    assert [line["label"] for line in (first, second, fourth)] == [
        predictor.predict(images[i]).label for i in (1, 1, 2)
    ]  # PNG loses nothing
    assert (last["summary"]["images"], last["summary"]["broken"], last["summary"]["ended"]) == (3, 1, "SIGINT")


def test_a_watch_goes_on_with_its_own_bundle_when_another_is_put_in_its_place(tmp_path: Path) -> None:
    folder, current = tmp_path / "in", tmp_path / "current"
    folder.mkdir()
    shutil.copytree(OLD, tmp_path / "first")
    current.symlink_to("first")
    with running("run", current, "--target", "onnx", "--watch", folder, "--json") as process:
        assert next_line(process)["source"] == str(folder)
        current.unlink()
        shutil.rmtree(tmp_path / "first")  # before any image has come
        images, predictor = pictures(4), Predictor.load(OLD, "onnx")
        for number, image in enumerate(images):
            write_whole(image, folder / f"{number}.png")
        answers = {Path(a["image"]).stem: a["branch"] for a in (next_line(process) for _ in images)}
        process.send_signal(signal.SIGTERM)
        assert next_line(process)["summary"]["images"] == 4 and process.wait(20) == 0
    assert answers == {str(n): predictor.predict(image).branch for n, image in enumerate(images)}
    assert len(set(answers.values())) == 2, "one branch alone was asked"


def test_an_image_that_is_not_read_is_told_a_person_on_stderr(tmp_path: Path) -> None:
    with running(*_OPTIONS, "--watch", tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        assert "target onnx" in process.stderr.readline()
        (tmp_path / "a.txt").write_text("no image")
        assert process.stderr.readline() == f"not read: {tmp_path}/a.txt: is not an image that Pillow can read\n"
        write_whole(pictures(1)[0], tmp_path / "a.png")
        assert process.stdout.readline().startswith(f"{tmp_path}/a.png: ")
        process.send_signal(signal.SIGTERM)
        assert "1 images (" in process.stderr.read() and process.wait(20) == 0


def test_a_watch_ends_after_its_duration(tmp_path: Path) -> None:
    first, last = lines_of(cli(*_OPTIONS, "--watch", tmp_path, "--duration", 0.3, "--json"))
    assert (last["summary"]["images"], last["summary"]["ended"]) == (0, "duration") and last["summary"]["seconds"] >= 0.3
    assert last["summary"]["mean_ms"] is None and first["there_before"] == 0


def test_a_watched_folder_that_vanishes_is_one_message_with_the_summary(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with running(*_OPTIONS, "--watch", folder, "--json") as process:
        next_line(process)
        folder.rmdir()
        last = next_line(process)
        assert process.wait(20) == 7
    assert last["error"]["where"] == str(folder) and last["summary"]["images"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--watch", "no-such-folder"], "no such folder"),
        (["--watch", __file__], "is a file"),
        (["--watch", ".", "--camera", "0"], "at once"),
        (["photo.jpg", "--camera", "0"], "at once"),
        (["photo.jpg", "--duration", "3"], "--duration"),
        (["--watch", ".", "--duration", "-1"], "--duration"),
        (["--watch", ".", "--branch", "no-such"], "no branch"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_live_use_that_cannot_be_is_a_usage_error(arguments: list[str], said: str) -> None:
    assert said in refused(2, "usage", *_OPTIONS, *arguments)["message"]


def test_a_reader_that_has_seen_enough_of_a_stream_is_no_error(clip: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    line = [sys.executable, "-m", "athe_export.cli", *map(str, _OPTIONS), "--camera", str(clip), "--json"]
    done = subprocess.run(line, stdout=write, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
