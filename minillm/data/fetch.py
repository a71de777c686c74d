"""One checked download: https only, a size limit, a known SHA-256, and nothing half-written left behind."""

import hashlib
import http.client
import os
import secrets
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from minillm.errors import ConfigError, DataError

CHUNK_BYTES = 1 << 16


def fetch(
    url: str,
    sha256: str,
    max_bytes: int,
    folder: str | Path,
    allow_http: bool = False,
    timeout_seconds: float = 30.0,
    progress: bool = True,
) -> Path:
    """Download `url` into `folder`, unless a file with the right SHA-256 is there already.

    The bytes go to a temporary file beside the target, which is renamed only after the checksum agrees.

    Args:
        url: an https address; the last part of its path becomes the file name.
        sha256: the expected checksum, 64 hex digits.
        max_bytes: more than this is refused, whatever the server announces.
        folder: made if missing.
        allow_http: also accept http, but only from this very machine (127.0.0.1, localhost): for tests.
        timeout_seconds: how long to wait for the connection and for each read.
        progress: draw a progress bar on stderr.

    Returns:
        Path of the complete, checked file.

    Raises:
        ConfigError: if the address is not https or has no file name.
        DataError: if there is no connection, or the file is larger, shorter or other than expected; nothing is kept.
    """
    target = Path(folder) / _file_name(url, allow_http)
    if target.exists() and sha256_of(target) == sha256:
        return target
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "xb") as file:
            found = _download(url, file, max_bytes, allow_http, timeout_seconds, progress)
            file.flush()
            os.fsync(file.fileno())
        if found != sha256:
            raise DataError(f"{url} has SHA-256 {found}, expected {sha256}: changed or damaged; nothing was kept")
        os.replace(partial, target)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{url} cannot be downloaded ({reason}); check the network, or use a local file") from error
    finally:
        if partial.exists():
            partial.unlink()
    return target


def _file_name(url: str, allow_http: bool) -> str:
    parts = urllib.parse.urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")
    if parts.scheme != "https" and not (allow_http and local):
        raise ConfigError(f"{url!r} is not an https address; only https is fetched")
    name = Path(urllib.parse.unquote(parts.path)).name
    if not name:
        raise ConfigError(f"{url!r} does not end in a file name")
    return name


class _StaySecure(urllib.request.HTTPRedirectHandler):
    """Follow a redirection only where the new address passes the same check as the first."""

    def __init__(self, allow_http: bool):
        self.allow_http = allow_http

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _file_name(newurl, self.allow_http)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, file, max_bytes: int, allow_http: bool, timeout_seconds: float, progress: bool) -> str:
    """Stream the answer into `file`; returns the SHA-256 of what came."""
    handlers = [_StaySecure(allow_http)] + [urllib.request.ProxyHandler({})] * url.startswith("http:")
    opener = urllib.request.build_opener(*handlers)
    digest, n_bytes = hashlib.sha256(), 0
    with opener.open(url, timeout=timeout_seconds) as answer:
        announced = answer.headers.get("Content-Length")
        expected = int(announced) if announced and announced.isdigit() else None
        if expected is not None and expected > max_bytes:
            raise DataError(f"{url} announces {expected} bytes, more than the {max_bytes} allowed; nothing was kept")
        name = Path(urllib.parse.urlsplit(url).path).name
        with tqdm(total=expected, unit="B", unit_scale=True, desc=name, disable=not progress) as bar:
            while chunk := answer.read(CHUNK_BYTES):
                n_bytes += len(chunk)
                if n_bytes > max_bytes:
                    raise DataError(f"{url} is larger than the {max_bytes} bytes allowed; nothing was kept")
                digest.update(chunk)
                file.write(chunk)
                bar.update(len(chunk))
    if expected is not None and n_bytes != expected:
        raise DataError(f"{url} broke off after {n_bytes} of {expected} bytes; nothing was kept, try again")
    return digest.hexdigest()


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, read in pieces.

    Args:
        path: an existing file of any size.

    Returns:
        64 hex digits.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user_cache_folder(
    platform: str = sys.platform, environment: Mapping[str, str] = os.environ, home: Path | None = None
) -> Path:
    """Where this user's downloads go, by the rule of the operating system.

    Args:
        platform: as `sys.platform` spells it.
        environment: read for XDG_CACHE_HOME (Linux and others) and LOCALAPPDATA (Windows).
        home: the user's home folder; None asks the system.

    Returns:
        A folder that need not exist: ~/.cache/minillm, ~/Library/Caches/minillm or %LOCALAPPDATA%/minillm/Cache.

    Example:
        >>> user_cache_folder("linux", {}, Path("/home/ada")).as_posix()
        '/home/ada/.cache/minillm'
    """
    home = Path.home() if home is None else home
    if platform == "win32":
        return Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local") / "minillm" / "Cache"
    if platform == "darwin":
        return home / "Library" / "Caches" / "minillm"
    return Path(environment.get("XDG_CACHE_HOME") or home / ".cache") / "minillm"
