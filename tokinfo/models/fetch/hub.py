"""A model repository on the Hugging Face hub: pinned to a commit, read by byte ranges.

The hub library does what it is for: the token (HF_TOKEN or its login, sent and never written),
the endpoint (HF_ENDPOINT), its cache (HF_HOME), offline mode (HF_HUB_OFFLINE), and retrying where
the hub is unreachable. What a server may cost is bounded here: the bytes of a listing, the time
that it asks to wait, and how slowly a transfer may go on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported as they are used
    build_hf_headers,
    hf_raise_for_status,
    http_stream_backoff,
    parse_ratelimit_headers,
)

from tokinfo.io.atomic import new_file
from tokinfo.io.damaged import parse_json, parsing, reading
from tokinfo.io.errors import FetchError, first_line
from tokinfo.io.locks import exclusive
from tokinfo.models.fetch import ranges
from tokinfo.models.fetch.local import read
from tokinfo.models.fetch.ranges import CutError, Piece, VerifyError

LARGEST = 64 << 20
"""Bytes of a listing, and of a config.json, once they are decompressed; real ones have a few MB."""
AGAIN = (408, 429, 500, 502, 503, 504)
"""Replies that may be others a little later."""
RETRIES = 5
LONGEST_WAIT = 600
"""Seconds that a server may ask to be left alone; a hub counts requests over five minutes."""
PATIENCE = 60.0
"""A stream that brings fewer than `ranges.LITTLE` bytes in so many seconds is cut off."""


@dataclass(frozen=True)
class Listed:
    """A file of a repository as the hub lists it."""

    size: int
    git: str | None  # SHA-1 of the file as a git blob
    sha256: str | None  # of a file in large-file storage


@dataclass(frozen=True)
class Listing:
    """A commit, and the files at its top level by name."""

    commit: str
    files: dict[str, Listed]


class HubOrigin:
    """The files of one repository at one commit.

    What a revision means is looked up once and kept in ``state``: studies that need more blocks
    later get them from the same commit.

    Args:
        repository: its id.
        revision: branch, tag or commit.
        state: directory for what has been fetched, shared by all studies with these results.
    """

    def __init__(self, repository: str, revision: str, state: Path) -> None:
        self.repository, self.revision = repository, revision
        self.name = f"model {repository}@{revision} on the hub"
        self.root = state / "hub" / repository

    @cached_property
    def listing(self) -> Listing:
        """The pinned commit and its files; looked up on the hub the first time."""
        kept = self._kept
        with exclusive(kept):
            revision = self.revision
            if kept.is_file():
                with reading(kept):
                    record = json.loads(kept.read_text(encoding="utf-8"))
                    revision = record["commit"]
                    if record["files"] is not None:
                        files = {name: Listed(**entry) for name, entry in record["files"].items()}
                        return Listing(revision, files)
            if constants.is_offline_mode():
                return self._snapshot()
            found = self._look_up(revision)
            self._confirm(found)
            self._keep(asdict(found))
            return found

    @property
    def _kept(self) -> Path:
        return self.root / "revisions" / f"{quote(self.revision, safe='')}.json"

    def _keep(self, record: dict[str, Any]) -> None:
        with new_file(self._kept) as partial:
            partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def doubt(self) -> None:
        """Have the listing looked up again by the next run, at the same commit.

        For what does not fit it: what arrived may be wrong, or the listing itself.
        """
        self._keep({"commit": self.commit, "files": None})

    @property
    def commit(self) -> str:
        """The commit that everything comes from."""
        return self.listing.commit

    @property
    def cache(self) -> Path:
        """Directory for what is made of this commit's files."""
        return self.root / self.commit

    def files(self) -> dict[str, int]:
        """Return the sizes of the files at the repository's top level."""
        return {name: listed.size for name, listed in self.listing.files.items()}

    def whole(self, file: str) -> Path:
        """Return the path of a whole file, fetched and verified against the hub's hash.

        Raises FetchError.
        """
        if (cached := self._cached(file)) is not None:
            return cached
        target = self.cache / "files" / file
        with exclusive(target):
            if not target.is_file():
                size = self.listing.files[file].size
                ranges.fill(
                    target,
                    self,
                    [Piece(file, 0, size, 0)] if size else [],
                    parallel=size > ranges.PIECE and self._has_ranges,
                    verify=lambda path: self._check(file, path),
                )
        return target

    def prepare(self, file: str) -> None:
        """Make sure that `stream` need not fetch a whole file for a part of it."""
        if self._cached(file) is None and not self._has_ranges:
            self.whole(file)

    def stream(self, file: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes ``start`` to ``end`` of a file.

        Raises:
            CutError: the connection broke off; the bytes before that are good.
            FetchError: the hub refuses, has no such file, or sends another one.
        """
        there = self.cache / "files" / file
        path = there if there.is_file() else self._cached(file)
        return self._request(file, start, end) if path is None else read(path, start, end)

    def sha256(self, file: str) -> str | None:
        """Return the hub's hash of a file that is not here as a whole, verified already."""
        if (self.cache / "files" / file).is_file() or self._cached(file) is not None:
            return None
        return self.listing.files[file].sha256

    def _request(self, file: str, start: int, end: int) -> Generator[bytes, None, None]:
        url = hf_hub_url(self.repository, file, revision=self.commit)
        # Compressed, a range would be one of the compressed file.
        headers = {"range": f"bytes={start}-{end - 1}", "accept-encoding": "identity"}
        with self._open(url, headers) as response:
            # A server without ranges replies 200 and sends the file from its beginning.
            ranged = response.status_code == 206
            size = self.listing.files[file].size
            header = response.headers.get("content-range" if ranged else "content-length", "")
            right = f"bytes {start}-{end - 1}/{size}" if ranged else str(size)
            if header and header != right:
                self.doubt()
                raise FetchError(f"{self.name}: {file}: requested {right}, was sent {header}")
            skip = 0 if ranged else start
            chunks = response.iter_bytes()
            since, brought = time.monotonic(), 0
            while True:
                try:
                    chunk = next(chunks, b"")
                except Exception as error:  # the HTTP library's, of many types
                    raise CutError(str(error) or type(error).__name__) from None
                if not chunk:
                    return
                brought += len(chunk)
                if time.monotonic() > since + PATIENCE:
                    if brought < ranges.LITTLE:
                        raise CutError(f"{brought} bytes in {PATIENCE:.0f} s")
                    since, brought = time.monotonic(), 0
                if skip < len(chunk):
                    yield chunk[skip:]
                skip = max(0, skip - len(chunk))

    @cached_property
    def _has_ranges(self) -> bool:
        """Whether the server sends a part of a file where one is requested."""
        listed = self.listing.files
        # One in large-file storage, as weights are; a server without ranges sends all of it.
        stored = [name for name in listed if listed[name].sha256] or list(listed)
        file = min(stored, key=lambda name: listed[name].size)
        url = hf_hub_url(self.repository, file, revision=self.commit)
        headers = {"range": "bytes=0-0", "accept-encoding": "identity"}
        with self._open(url, headers) as reply:
            return bool(reply.status_code == 206)

    @contextmanager
    def _open(
        self, url: str, headers: dict[str, str] | None = None, **words: Any
    ) -> Generator[Any, None, None]:
        """Yield the reply to a request, whose body is still to come; raises FetchError."""
        words |= {
            "headers": {**build_hf_headers(), **(headers or {})},
            "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT,
            "base_wait_time": ranges.WAIT,
            "retry_on_status_codes": (),
        }
        with self._explained(), ExitStack() as opened:
            for tried in range(RETRIES + 1):
                reply = opened.enter_context(http_stream_backoff("GET", url, **words))
                if reply.status_code not in AGAIN or tried == RETRIES:
                    break
                wait = _asked(reply.headers)
                if wait is not None and wait > LONGEST_WAIT:
                    raise FetchError(f"{self.name}: the hub asks to wait for {wait} s; try then")
                opened.close()
                time.sleep(min(ranges.WAIT * 2**tried, 8) if wait is None else wait + 1)
            hf_raise_for_status(reply)
            yield reply

    def _read(self, url: str, **words: Any) -> bytes:
        """Return a reply's body, of at most `LARGEST` bytes; raises FetchError."""
        found = bytearray()
        with self._open(url, **words) as reply:
            for chunk in reply.iter_bytes():
                found += chunk
                if len(found) > LARGEST:
                    raise FetchError(f"{self.name}: {url} is larger than {LARGEST >> 20} MB")
        return bytes(found)

    def _confirm(self, found: Listing) -> None:
        """Hold a listing to the repository before it is kept: its config.json is as listed.

        Raises FetchError.
        """
        if "config.json" not in found.files:
            raise FetchError(f"{self.name}: no config.json there")
        target = self.root / found.commit / "files" / "config.json"
        if target.is_file():
            return
        url = hf_hub_url(self.repository, "config.json", revision=found.commit)
        with new_file(target) as partial:
            partial.write_bytes(self._read(url))
            self._verify("config.json", found.files["config.json"], partial)

    def _look_up(self, revision: str) -> Listing:
        url = f"{constants.ENDPOINT}/api/models/{self.repository}/revision/"
        text = self._read(url + quote(revision, safe=""), params={"blobs": True})
        with parsing(f"{self.name}: {constants.ENDPOINT} does not answer as a hub does"):
            body = parse_json(text)
            files = {}
            for entry in body["siblings"]:
                # Files in folders are other formats of the same weights.
                if "/" not in entry["rfilename"]:
                    sha256 = (entry.get("lfs") or {}).get("sha256")
                    size = int(entry["size"])
                    files[entry["rfilename"]] = Listed(size, entry.get("blobId"), sha256)
            # The commit names a directory here.
            return Listing(f"{int(body['sha'], 16):040x}", files)

    def _snapshot(self) -> Listing:
        """Return what the hub library's cache holds of the revision."""
        try:
            revision = HfApi().resolve_revision(
                self.repository, revision=self.revision, local_files_only=True
            )
            found = try_to_load_from_cache(
                self.repository, "config.json", revision=revision.resolved
            )
        except RevisionResolutionError:
            found = None
        if not isinstance(found, str):
            raise FetchError(
                f"{self.name}: offline (HF_HUB_OFFLINE), and not in the hub's cache "
                f"({constants.HF_HUB_CACHE})"
            )
        directory = Path(found).parent
        files = {
            path.name: Listed(path.stat().st_size, None, None)
            for path in sorted(directory.iterdir())
            if path.is_file()
        }
        return Listing(directory.name, files)

    def _cached(self, file: str) -> Path | None:
        """Return a file of the hub library's cache, if it is there at this commit."""
        found = try_to_load_from_cache(self.repository, file, revision=self.commit)
        if not isinstance(found, str):
            return None
        path = Path(found)
        return path if path.stat().st_size == self.listing.files[file].size else None

    def _check(self, file: str, path: Path) -> None:
        try:
            self._verify(file, self.listing.files[file], path)
        except VerifyError:
            self.doubt()
            raise

    def _verify(self, file: str, listed: Listed, path: Path) -> None:
        """Raise VerifyError unless a file has the size and hash that the hub lists."""
        if path.stat().st_size != listed.size:
            raise VerifyError(f"{self.name}: {file} has the wrong size")
        # Small files are listed with git's hash, which begins with their kind and size.
        digest = hashlib.sha256() if listed.sha256 else hashlib.sha1(usedforsecurity=False)
        if not listed.sha256:
            digest.update(f"blob {listed.size}\0".encode())
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        wanted = listed.sha256 or listed.git
        if wanted and digest.hexdigest() != wanted:
            raise VerifyError(
                f"{self.name}: {file} arrived damaged (hash {digest.hexdigest()[:12]}..., "
                f"the hub says {wanted[:12]}...); run again"
            )

    @contextmanager
    def _explained(self) -> Generator[None, None, None]:
        """Turn the hub library's errors into one line with what to do."""
        try:
            yield
        except (FetchError, CutError, GeneratorExit):
            raise
        except OfflineModeIsEnabled:
            raise FetchError(
                f"{self.name}: offline (HF_HUB_OFFLINE), and not everything needed is at hand"
            ) from None
        except HfHubHTTPError as error:
            raise FetchError(f"{self.name}: {self._advice(error)}") from error
        except Exception as error:  # the HTTP library's: no route, no such host, ...
            first = first_line(error)
            raise FetchError(
                f"{self.name}: {constants.ENDPOINT} cannot be reached: {first}"
            ) from None

    def _advice(self, error: HfHubHTTPError) -> str:
        page = f"{constants.ENDPOINT}/{self.repository}"
        status = error.response.status_code
        if isinstance(error, RevisionNotFoundError):
            return f"the repository has no revision {self.revision!r}"
        if isinstance(error, EntryNotFoundError):
            return f"a file is gone from the hub: {error.response.url.path}"
        if isinstance(error, GatedRepoError) or status == 403:
            return f"access is refused: accept its licence at {page} and set HF_TOKEN"
        if status in (401, 404):
            return (
                f"the hub knows no such repository, or not for you: check the name; for a "
                f"private one set HF_TOKEN ({page})"
            )
        return f"the hub answers {status} again and again; try later"


def _asked(headers: Mapping[str, str]) -> int | None:
    """Return the seconds that a reply asks to wait; None: it does not say."""
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    after = headers.get("retry-after", "").strip()
    return int(after[:9]) if after.isascii() and after.isdecimal() else None
