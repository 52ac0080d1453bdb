"""The download against a real server on this machine: cut, resumed, refused, unreachable."""

from __future__ import annotations

import hashlib
import io
import re
import resource
import socket
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from athe_export.data.cifar100 import FOLDER, Cifar100
from athe_export.data.download import cached_cifar100
from athe_export.data.source import no_progress
from athe_export.errors import DatasetError, EnvironmentFailure

NOISE = np.random.RandomState(0).bytes(300_000)  # incompressible, so that a cut falls inside it


def make_archive() -> bytes:
    """A tar.gz in the official layout."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in (("train", NOISE), ("test", b"test"), ("meta", b"meta")):
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class Site:
    """What the server does next, and the Range of every request that it got (None: the whole)."""

    content: bytes
    cut_after: int | None = None  # bytes of the next answer that are sent
    ranges: bool = True
    chunked: bool = False
    raw: bytes | None = None  # an answer that is not HTTP
    status: int | None = None
    asked: list[str | None] = field(default_factory=list)
    reached: threading.Event = field(default_factory=threading.Event)
    held_until: threading.Event | None = None  # answers wait for it
    url: str = ""

    @property
    def md5(self) -> str:
        return hashlib.md5(self.content, usedforsecurity=False).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        site: Site = self.server.site  # type: ignore[attr-defined]
        asked = self.headers.get("Range")
        site.asked.append(asked)
        self.close_connection = True
        site.reached.set()
        if site.held_until is not None:
            site.held_until.wait(30)
        if site.raw is not None:
            self.wfile.write(site.raw)
            return
        if site.status is not None:
            self.send_error(site.status)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and site.ranges else 0  # type: ignore[index]
        if start >= len(site.content):
            self.send_error(416)
            return
        self._answer(site, start, 206 if asked and site.ranges else 200)

    def _answer(self, site: Site, start: int, status: int) -> None:
        body, sent, site.cut_after = site.content[start:], site.cut_after, None
        self.send_response(status)
        if site.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if site.chunked:
            self.wfile.write(f"{len(body):x}\r\n".encode())
        self.wfile.write(body[:sent])
        if site.chunked and sent is None:
            self.wfile.write(b"\r\n0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A running server with the archive; proxies of the environment do not stand between."""
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = Site(make_archive(), url=f"http://127.0.0.1:{server.server_port}/cifar.tar.gz")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.site  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(site: Site, cache: Path) -> Path:
    return cached_cifar100(no_progress, cache, site.url, site.md5)


def require_unpacked(cache: Path) -> None:
    assert (cache / FOLDER / "train").read_bytes() == NOISE
    assert sorted(p.name for p in (cache / FOLDER).iterdir()) == ["meta", "test", "train"]
    assert left_in(cache) == [FOLDER]  # no archive, no part, no staging is left


def left_in(cache: Path) -> list[str]:
    """What is in the cache but the empty lock file."""
    return sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock"))


def unreachable(cache: Path, url: str, md5: str = "0" * 32) -> EnvironmentFailure:
    with pytest.raises(EnvironmentFailure) as caught:
        cached_cifar100(no_progress, cache, url, md5)
    assert caught.value.exit_code == 7
    assert "ATHE_DATA_ROOT" in (caught.value.remedy or "")
    return caught.value


def test_the_archive_is_fetched_checked_and_unpacked_with_progress(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    cache = tmp_path / "deep" / "cache"
    found = cached_cifar100(lambda step, done, total: seen.append((done, total)), cache, site.url, site.md5)
    assert found == cache
    require_unpacked(cache)
    assert seen == sorted(seen)
    assert seen[-1] == (len(site.content) >> 10, len(site.content) >> 10)


def test_what_is_in_the_cache_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    fetch(site, tmp_path)
    fetch(site, tmp_path)
    assert site.asked == [None]


def test_two_downloads_at_once_ask_the_site_once_and_the_second_says_that_it_waits(site: Site, tmp_path: Path) -> None:
    second_waits = site.held_until = threading.Event()
    said: list[str] = []
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fetch, site, tmp_path)
        assert site.reached.wait(30)
        second = pool.submit(
            cached_cifar100, lambda step, *_: (said.append(step), second_waits.set()), tmp_path, site.url, site.md5
        )
        assert (first.result(), second.result()) == (tmp_path, tmp_path)
    assert site.asked == [None]
    assert said == ["wait for another download of CIFAR-100"]
    require_unpacked(tmp_path)


@pytest.mark.parametrize("there", [["train"], ["train", "test"], ["meta", "stray"]], ids=" ".join)
def test_a_set_that_is_not_whole_is_fetched_anew(site: Site, tmp_path: Path, there: list[str]) -> None:
    (tmp_path / FOLDER).mkdir()
    for name in there:
        (tmp_path / FOLDER / name).write_bytes(b"half")
    fetch(site, tmp_path)
    require_unpacked(tmp_path)


@pytest.mark.parametrize("chunked", [False, True], ids=["with-length", "chunked"])
def test_a_cut_download_is_said_and_resumes_where_it_ended(site: Site, tmp_path: Path, chunked: bool) -> None:
    site.cut_after, site.chunked = 100_000, chunked
    error = unreachable(tmp_path, site.url, site.md5)
    assert "it resumes" in (error.remedy or "")
    assert not (tmp_path / FOLDER).exists()
    kept = (tmp_path / "cifar-100-python.tar.gz.part").read_bytes()
    assert kept == site.content[: len(kept)]
    fetch(site, tmp_path)
    require_unpacked(tmp_path)
    assert site.asked == [None, f"bytes={len(kept)}-" if kept else None]
    assert kept or chunked  # a chunk that did not arrive whole is not counted; plain bytes are


def test_a_download_cut_again_and_again_arrives_in_the_end(site: Site, tmp_path: Path) -> None:
    for done in (70_000, 140_000, 210_000):
        site.cut_after = 70_000
        unreachable(tmp_path, site.url, site.md5)
        assert (tmp_path / "cifar-100-python.tar.gz.part").stat().st_size == done
    fetch(site, tmp_path)
    require_unpacked(tmp_path)


def test_a_server_without_ranges_is_read_from_the_start(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    site.cut_after, site.ranges = 100_000, False
    unreachable(tmp_path, site.url, site.md5)
    cached_cifar100(lambda step, done, total: seen.append((done, total)), tmp_path, site.url, site.md5)
    require_unpacked(tmp_path)
    assert seen[-1] == (len(site.content) >> 10, len(site.content) >> 10)  # what was thrown away is not counted


def test_a_part_that_was_complete_is_used(site: Site, tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python.tar.gz.part").write_bytes(site.content)
    fetch(site, tmp_path)
    require_unpacked(tmp_path)
    assert site.asked == [f"bytes={len(site.content)}-"]


def test_an_archive_with_another_md5_is_removed_and_the_next_attempt_starts_anew(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="it was removed") as caught:
        cached_cifar100(no_progress, tmp_path, site.url, "0" * 32)
    assert caught.value.exit_code == 6
    assert site.md5 in caught.value.what
    assert left_in(tmp_path) == []
    fetch(site, tmp_path)
    require_unpacked(tmp_path)


def test_a_truncated_archive_in_the_cache_is_removed(site: Site, tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(site.content[:1000])
    with pytest.raises(DatasetError, match="it was removed"):
        fetch(site, tmp_path)
    assert site.asked == []
    fetch(site, tmp_path)
    require_unpacked(tmp_path)


def test_a_part_of_another_file_is_found_out_by_the_md5(site: Site, tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python.tar.gz.part").write_bytes(b"something else" * 100)
    with pytest.raises(DatasetError, match="it was removed"):
        fetch(site, tmp_path)
    fetch(site, tmp_path)
    require_unpacked(tmp_path)


def test_an_unreachable_server_is_an_environment_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/cifar.tar.gz"  # bound, and nobody listens
        error = unreachable(tmp_path, url)
    assert error.where == url
    assert "cannot be downloaded" in error.what


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusal_by_the_server_is_an_environment_failure(site: Site, tmp_path: Path, status: int) -> None:
    site.status = status
    assert "cannot be downloaded" in unreachable(tmp_path, site.url).what


@pytest.mark.parametrize("raw", [b"", b"this is no HTTP\r\n\r\n"], ids=["nothing", "garbage"])
def test_an_answer_that_is_not_http_is_an_environment_failure(site: Site, tmp_path: Path, raw: bytes) -> None:
    site.raw = raw
    assert "cannot be downloaded" in unreachable(tmp_path, site.url).what


def test_a_cache_that_cannot_be_made_is_an_environment_failure(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    error = unreachable(tmp_path / "file" / "cache", site.url)
    assert error.what == "the cache cannot be written: Not a directory"
    assert site.asked == []


def test_a_disk_that_fills_up_keeps_what_was_fetched(site: Site, tmp_path: Path) -> None:
    """A limit on file size stands for the full disk: the same write fails, with another errno."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        error = unreachable(tmp_path, site.url, site.md5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.what == "the cache cannot be written: File too large"
    assert (tmp_path / "cifar-100-python.tar.gz.part").stat().st_size == 100_000
    fetch(site, tmp_path)
    require_unpacked(tmp_path)
    assert site.asked == [None, "bytes=100000-"]


def test_a_damaged_copy_in_the_cache_is_refused_with_how_to_fetch_it_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of the user holds the archive of the tests, whose files are not the official ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "athe-export" / "data"
    fetch(site, cache)
    with pytest.raises(DatasetError, match="truncated or changed") as caught:
        Cifar100.open(None)
    assert caught.value.remedy == f"remove {cache / FOLDER}; the archive is then downloaded again"
