"""A model repository on the Hugging Face hub: pinned to a commit, read by byte ranges.

The hub library does what it is for: the token (HF_TOKEN or its login, sent and never written),
the endpoint (HF_ENDPOINT), its cache (HF_HOME), offline mode (HF_HUB_OFFLINE), and waiting before
it retries (429 with Retry-After, 5xx, unreachable).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
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
    http_backoff,
    http_stream_backoff,
)

from tokinfo.io.atomic import new_file
from tokinfo.io.damaged import parse_json, parsing, reading
from tokinfo.io.errors import FetchError, first_line
from tokinfo.io.locks import exclusive
from tokinfo.models.fetch import ranges
from tokinfo.models.fetch.local import read
from tokinfo.models.fetch.ranges import CutError, Piece, VerifyError


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
        kept = self.root / "revisions" / f"{quote(self.revision, safe='')}.json"
        with exclusive(kept):
            if kept.is_file():
                with reading(kept):
                    record = json.loads(kept.read_text(encoding="utf-8"))
                    files = {name: Listed(**entry) for name, entry in record["files"].items()}
                    return Listing(record["commit"], files)
            if constants.is_offline_mode():
                return self._snapshot()
            found = self._look_up()
            with new_file(kept) as partial:
                partial.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
            return found

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
                    verify=lambda path: self._verify(file, path),
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
        headers = build_hf_headers()
        # Compressed, a range would be one of the compressed file.
        headers |= {"range": f"bytes={start}-{end - 1}", "accept-encoding": "identity"}
        with (
            self._explained(),
            http_stream_backoff(
                "GET",
                url,
                headers=headers,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                base_wait_time=ranges.WAIT,
            ) as response,
        ):
            hf_raise_for_status(response)
            # A server without ranges replies 200 and sends the file from its beginning.
            ranged = response.status_code == 206
            size = self.listing.files[file].size
            header = response.headers.get("content-range" if ranged else "content-length", "")
            right = f"bytes {start}-{end - 1}/{size}" if ranged else str(size)
            if header and header != right:
                raise FetchError(f"{self.name}: {file}: requested {right}, was sent {header}")
            skip = 0 if ranged else start
            chunks = response.iter_bytes()
            while True:
                try:
                    chunk = next(chunks, b"")
                except Exception as error:  # the HTTP library's, of many types
                    raise CutError(str(error) or type(error).__name__) from None
                if not chunk:
                    return
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
        headers = {**build_hf_headers(), "range": "bytes=0-0", "accept-encoding": "identity"}
        with (
            self._explained(),
            http_stream_backoff("GET", url, headers=headers, base_wait_time=ranges.WAIT) as reply,
        ):
            hf_raise_for_status(reply)
            return bool(reply.status_code == 206)

    def _look_up(self) -> Listing:
        revision = quote(self.revision, safe="")
        url = f"{constants.ENDPOINT}/api/models/{self.repository}/revision/{revision}"
        with self._explained():
            reply = http_backoff(
                "GET",
                url,
                params={"blobs": True},
                headers=build_hf_headers(),
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                base_wait_time=ranges.WAIT,
            )
            hf_raise_for_status(reply)
        with parsing(f"{self.name}: {constants.ENDPOINT} does not answer as a hub does"):
            body = parse_json(reply.content)
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

    def _verify(self, file: str, path: Path) -> None:
        """Raise VerifyError unless a file has the size and hash that the hub lists."""
        listed = self.listing.files[file]
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
