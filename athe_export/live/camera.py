"""Frames of whatever OpenCV opens: a camera by its index or device, a stream by its address, a video file, numbered images.

Of files every frame is given. Of a camera or a stream the newest alone: one thread takes frames as they come, and what is
too slow for all of them sees no stale ones.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np

from athe_export.dependencies import CAMERA_JOB, require
from athe_export.errors import EnvironmentFailure, MissingDependency
from athe_export.live.stream import Ended, Item
from athe_export.preprocessing import Pixels

_QUIET = {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8"}  # what matters of it is said here, once
_NUMBERED = re.compile(r"%0?\d*d")  # files by a pattern, which have an end as a video has
_JOIN_S = 2.0


def open_camera(source: str) -> VideoFile | Camera:
    """Opens a source and takes its first frame, which shows that there are any.

    Raises:
        MissingDependency: OpenCV is not installed, or does not work here.
        EnvironmentFailure: OpenCV does not open it, or it gives no frames.
    """
    require(CAMERA_JOB)
    opencv = _opencv()
    words = _words(source)
    what, remedy = words
    try:
        capture = opencv.VideoCapture(int(source) if source.isdecimal() else source)
        opened = capture.isOpened()
    except opencv.error:  # an index beyond what it counts with
        opened = False
    if not opened:
        raise EnvironmentFailure(f"the {what} cannot be opened", where=source, remedy=remedy)
    there, frame = capture.read()
    if not there:
        capture.release()
        raise EnvironmentFailure(f"the {what} was opened and gives no frames", where=source, remedy=remedy)
    if _is_file(source) or (_NUMBERED.search(source) and "://" not in source):
        return VideoFile(capture, source, frame)
    return Camera(capture, source, frame, words)


def _words(source: str) -> tuple[str, str]:
    """What a source is called, and what to do where it fails."""
    if _is_file(source):
        return "video file", "give a video that OpenCV reads, for example AVI or MP4"
    if "://" in source:
        return "stream", "see that its server runs and is reached from here, and check the address"
    if source.isdecimal() or source.startswith("/dev/"):
        return "camera", (
            "plug it in, see that no other program has it and that you are in the group video; `ls /dev/video*` lists "
            "cameras, --camera 0 is the first"
        )
    return "source", (
        "give a camera's index or device, a stream's address, a video file that exists, images by a pattern such as "
        "img%03d.png, or a pipeline of GStreamer to an OpenCV that was built with it"
    )


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except OSError:  # too long for a name, as a pipeline may be
        return False


def _opencv() -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import cv2
    except ImportError as err:
        raise MissingDependency(
            f"OpenCV is installed but does not work here: {err}",
            remedy='pip install --force-reinstall "athe-export[camera]"',
        ) from None
    return cv2


def rgb(frame: Any) -> Pixels:
    """A frame as OpenCV gives it, blue first, as RGB uint8 [height, width, 3]."""
    return np.ascontiguousarray(frame[:, :, ::-1])


class VideoFile:
    """Every frame of a file, in order."""

    skipped = 0

    def __init__(self, capture: Any, source: str, first: Any) -> None:
        self._capture, self._source, self._next, self._count = capture, source, first, 0

    def next(self, wait_s: float) -> Item | None:
        """The next frame.

        Raises:
            Ended: that was the last.
        """
        if self._next is None:
            there, frame = self._capture.read()
            if not there:
                raise Ended
            self._next = frame
        item = Item(self._source, rgb(self._next), self._count)
        self._next, self._count = None, self._count + 1
        return item

    def refused(self, item: Item) -> bool:
        return True

    def close(self) -> None:
        self._capture.release()


class Camera:
    """The newest frame of a camera or stream whenever one is asked for."""

    def __init__(self, capture: Any, source: str, first: Any, words: tuple[str, str]) -> None:
        self._capture, self._source, self._words = capture, source, words
        self._newest: Any = first
        self._taken = self._given = 0  # numbers of the newest frame, and of the last that was given, from 0 and 1
        self.skipped = 0
        self._over = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._take, name="camera", daemon=True)
        self._thread.start()

    def next(self, wait_s: float) -> Item | None:
        """The newest frame, if there is one that was not given yet.

        Raises:
            EnvironmentFailure: no more will come.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._over, wait_s)
            if self._newest is None:
                if self._over:
                    what, remedy = self._words
                    raise EnvironmentFailure(f"the {what} gives no more frames", where=self._source, remedy=remedy)
                return None
            frame, self._newest, number = self._newest, None, self._taken
            self.skipped += number - self._given
            self._given = number + 1
        return Item(self._source, rgb(frame), number)

    def refused(self, item: Item) -> bool:
        return True

    def close(self) -> None:
        """Lets the camera go, unless it hangs in a read: then the end of the program does."""
        self._closed = True
        self._thread.join(_JOIN_S)
        if not self._thread.is_alive():
            self._capture.release()

    def _take(self) -> None:
        while not self._closed:
            there, frame = self._capture.read()
            with self._changed:
                if there:
                    self._newest, self._taken = frame, self._taken + 1
                self._over = not there
                self._changed.notify()
            if not there:
                return
