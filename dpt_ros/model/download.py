# SPDX-License-Identifier: Apache-2.0
"""Published files: downloaded once into a cache folder, checked, resumed after a break."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, BinaryIO
from urllib.parse import urlsplit

from dpt_ros.model.zoo import ModelSpec

ATTEMPTS = 3
CHUNK = 1 << 20
MOST_BYTES = 8 << 30
TIMEOUT_S = 30

# Raised when a connection breaks.
_BROKEN = (http.client.HTTPException, ConnectionError, TimeoutError)
_log = logging.getLogger(__name__)


class DownloadError(OSError):
    """A published file could not be fetched or is not what was published."""


class SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but none from https to an unauthenticated scheme."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def cache_folder() -> Path:
    """Where downloads are kept: ``$DPT_ROS_CACHE``, else ``~/.cache/dpt_ros``."""
    return Path(os.environ.get("DPT_ROS_CACHE") or Path.home() / ".cache" / "dpt_ros")


def cache_path(spec: ModelSpec) -> Path:
    """Where the published file of a network is kept once downloaded."""
    return cache_folder() / spec.name / Path(urlsplit(spec.url).path).name


def download(spec: ModelSpec) -> Path:
    """The published file of a network, from the cache or the internet.

    Raises:
        DownloadError: it cannot be fetched, or its sha256 is not the published one.
    """
    if not spec.url:
        raise DownloadError(
            f"No weights of {spec.name} are published for download; give the path of a file, "
            'or ask for weights "random".'
        )
    path = cache_path(spec)
    fetch(spec.url, path, spec.sha256)
    return path


def fetch(url: str, path: Path, sha256: str) -> None:
    """Download ``url`` to ``path`` unless it is there already.

    The bytes gather in ``path``.part, where a later call goes on (HTTP Range) if the connection
    breaks; the file takes its name only when whole and checked. Processes that want the same
    file wait for the first one.

    Args:
        sha256: hex digits that the file's hash starts with; "" to accept and report any.

    Raises:
        DownloadError: no connection, no such file, more than `MOST_BYTES`, or a wrong hash.
    """
    if path.exists():
        return
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():
                part.unlink(missing_ok=True)
                return
            _fill(file, url, path.name)
            digest = sha256_of(file)
            if not digest.startswith(sha256):
                part.unlink(missing_ok=True)
                raise DownloadError(
                    f"{url} has sha256 {digest}, but the published one starts with {sha256}; the "
                    "file was deleted. Try again, or get it from elsewhere and give its path."
                )
            # A file of this name must be whole even after a power cut.
            os.fsync(file.fileno())
            os.replace(part, path)
    except DownloadError:
        raise
    except (*_BROKEN, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(
            f"{url} could not be downloaded: {reason}. Check the network and try again (what has "
            f"come so far is kept), or fetch it elsewhere, save it as {path} and start again."
        ) from error
    except OSError as error:
        raise DownloadError(
            f"{url} cannot be saved as {path}: {error.strerror}. Set DPT_ROS_CACHE to a folder "
            "that can be written and has room."
        ) from error
    if not sha256:
        _log.warning(
            "%s was not checked, because its published sha256 is not known; it is %s.",
            path,
            digest,
        )


def _fill(file: BinaryIO, url: str, label: str) -> None:
    """Append what is missing, in a few attempts."""
    for attempt in range(ATTEMPTS):
        try:
            _append(file, url, label)
            return
        except _BROKEN as error:
            if attempt == ATTEMPTS - 1:
                raise
            _log.info("%s: %s; going on at byte %d.", url, error, file.tell())


def _append(file: BinaryIO, url: str, label: str) -> None:
    from tqdm import tqdm

    start = file.seek(0, os.SEEK_END)
    headers = {"User-Agent": "dpt_ros", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.build_opener(SecureRedirects).open(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        # Range not satisfiable: the part is whole already, or belongs to another file.
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return
        file.truncate(0)
        return _append(file, url, label)
    with response:
        rest = response.headers["Content-Range"] or ""
        if response.status != 206 or not rest.startswith(f"bytes {start}-"):
            start = 0
            file.truncate(0)
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        bar = tqdm(desc=label, initial=start, total=total, unit="B", unit_scale=True, disable=None)
        with bar:
            while chunk := response.read1(CHUNK):  # what has arrived, to keep it if killed
                if file.tell() + len(chunk) > MOST_BYTES:
                    file.truncate(0)
                    raise DownloadError(
                        f"{url} has more than {MOST_BYTES >> 20} MB, which is no checkpoint; the"
                        " file was deleted."
                    )
                file.write(chunk)
                bar.update(len(chunk))
        end = file.tell()
        if total is not None and end != total:
            raise http.client.HTTPException(f"the connection ended after {end} of {total} bytes")


def sha256_of(file: BinaryIO) -> str:
    """The sha256 of all of a file, 64 hex digits."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
