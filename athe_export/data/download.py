"""CIFAR-100 from its author's site into the user cache: resumable, checked, with progress."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import shutil
import ssl
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from athe_export.data.location import holds_cifar100
from athe_export.errors import DatasetError, EnvironmentFailure, MissingDependency

if TYPE_CHECKING:  # doctor looks into the cache, and must start where numpy is missing
    from athe_export.data.source import Progress

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
_CHUNK = 1 << 18


def cached_cifar100(progress: Progress, cache: Path | None = None, url: str = URL, md5: str = MD5) -> Path:
    """The data root in the user cache, downloaded where absent.

    Raises:
        EnvironmentFailure: the site cannot be reached or the cache cannot be written; what was fetched is kept.
        DatasetError: the archive is not the official one; it is removed.
        MissingDependency: without platformdirs there is no user cache.
    """
    cache = cache or user_cache()
    if holds_cifar100(cache):
        return cache
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache, progress):
            if not holds_cifar100(cache):  # another build has downloaded it meanwhile
                _download(cache, url, md5, progress)
    except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError) as err:
        raise EnvironmentFailure(
            f"CIFAR-100 cannot be downloaded: {getattr(err, 'reason', err)}",
            where=url,
            remedy="try again (it resumes), or set ATHE_DATA_ROOT to a folder that holds cifar-100-python/",
        ) from None
    except OSError as err:
        raise EnvironmentFailure(
            f"the cache cannot be written: {err.strerror}", where=str(cache), remedy="free space, or set ATHE_DATA_ROOT"
        ) from None
    return cache


def user_cache() -> Path:
    """Raises MissingDependency without platformdirs."""
    try:
        from platformdirs import user_cache_path
    except ImportError:
        raise MissingDependency(
            "platformdirs is not installed, so there is no user cache to download to",
            remedy="give a data root that holds cifar-100-python/ (--data-root, ATHE_DATA_ROOT)",
        ) from None
    return user_cache_path("athe-export") / "data"


@contextlib.contextmanager
def _alone(cache: Path, progress: Progress) -> Iterator[None]:
    """One download at a time writes the cache; the lock is the kernel's, so a killed one leaves none behind."""
    with (cache / "download.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("wait for another download of CIFAR-100", 1, 1)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(cache: Path, url: str, md5: str, progress: Progress) -> None:
    archive = cache / "cifar-100-python.tar.gz"
    if not archive.exists():
        part = archive.with_name(archive.name + ".part")
        _fetch(url, part, progress)
        part.replace(archive)
    _require_md5(archive, md5)
    _unpack(archive, cache)
    archive.unlink()


def _fetch(url: str, part: Path, progress: Progress) -> None:
    """Continues `part` where it ends."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as err:
        if have and err.code == 416:  # nothing beyond what is here: it was complete
            return
        raise
    with response:
        resumed = response.status == 206
        have = have if resumed else 0
        total = have + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress("download CIFAR-100, KiB", have >> 10, total >> 10)
    if total and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _require_md5(archive: Path, md5: str) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        archive.unlink()
        raise DatasetError(
            f"the archive's md5 is {found}, the official one's is {md5}; it was removed",
            where=str(archive),
            remedy="try again; if it repeats, something on the way changes downloads",
        )


def _unpack(archive: Path, cache: Path) -> None:
    """Into a staging folder, then renamed, so that a half-unpacked set is never found; an incomplete one is removed."""
    staging, folder = cache / "unpacking", cache / "cifar-100-python"
    with tarfile.open(archive) as tar:
        tar.extractall(staging, filter="data")
    if folder.exists():
        shutil.rmtree(folder)
    (staging / folder.name).replace(folder)
    staging.rmdir()
