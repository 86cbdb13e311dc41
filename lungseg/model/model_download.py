"""Read the files of a model at an address: hf://, https://, s3:// or gs://."""

import http.client
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from lungseg import __version__, storage
from lungseg.errors import InputError, SettingsError, first_line

ReadFile = Callable[[str, int], bytes | None]
"""Reads a file of a model (name, most bytes); None where the address has no such file."""

_HUB_ADDRESS = re.compile(r"hf://([\w-][\w.-]*/[\w-][\w.-]*?)(?:@([\w-][\w./-]*))?/?", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MISSING = (404, 410)  # HTTP status
_TIMEOUT_S = 15.0  # of each wait for the server


@dataclass(frozen=True)
class RemoteModel:
    """A model at an address; is_pinned: the address names a commit, whose files never change."""

    address: str
    read: ReadFile
    is_pinned: bool = False


def open_address(address: str) -> RemoteModel:
    """Return the model at an address, without connecting to it.

    Raises:
        SettingsError: the address is malformed.

    """
    if address.startswith("hf://"):
        return _on_hub(address)
    if address.startswith(("https://", "http://")):
        return RemoteModel(address.rstrip("/"), _https_reader(storage.resolve(address)))
    folder = storage.resolve(address)
    return RemoteModel(folder, lambda name, limit: _read_object(storage.join(folder, name), limit))


def _on_hub(address: str) -> RemoteModel:
    match = _HUB_ADDRESS.fullmatch(address)
    if match is None or ".." in address:
        raise SettingsError(f"{address}: expected hf://owner/name or hf://owner/name@revision")
    repository, revision = match[1], match[2] or "main"
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    base = f"{endpoint.rstrip('/')}/{repository}/resolve/{quote(revision, safe='')}"
    read = _https_reader(base, os.environ.get("HF_TOKEN", ""))
    return RemoteModel(address.rstrip("/"), read, is_pinned=bool(_COMMIT.fullmatch(revision)))


def _read_object(path: str, limit: int) -> bytes | None:
    """Read an object of a bucket."""
    stat = storage.try_stat(path)
    if stat is None:
        return None
    if stat[0] > limit:
        raise _too_large(path, limit)
    return storage.read_bytes(path)


def _https_reader(base: str, token: str = "") -> ReadFile:
    _require_encrypted(base)

    def read(name: str, limit: int) -> bytes | None:
        url = f"{base}/{name}"
        request = Request(url, headers={"User-Agent": f"lungseg/{__version__}"})  # noqa: S310  # the scheme is checked
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")  # not for the hosts of redirects
        try:
            with build_opener(_EncryptedRedirects).open(request, timeout=_TIMEOUT_S) as response:
                content: bytes = response.read(limit + 1)
        except HTTPError as error:
            if error.code in _MISSING:
                return None
            raise _refusal(url, error.code) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            text = first_line(reason) if isinstance(reason, BaseException) else str(reason)
            raise InputError(f"{url}: cannot be downloaded ({text}): check the address and the network") from None
        if len(content) > limit:
            raise _too_large(url, limit)
        return content

    return read


def _refusal(url: str, status: int) -> InputError:
    if status in (401, 403):
        return InputError(
            f"{url}: the server refuses it (HTTP {status}): check the address; a private model of the Hugging Face hub "
            "needs your token in HF_TOKEN"
        )
    return InputError(f"{url}: cannot be downloaded (HTTP {status}): try again later")


def _too_large(path: str, limit: int) -> InputError:
    return InputError(f"{path}: larger than {limit >> 20} MiB, which no lungseg model is: check the address")


def _require_encrypted(url: str) -> None:
    """Refuse addresses whose content others could change on the way.

    Raises:
        SettingsError: not https://, and not this machine.

    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise SettingsError(f"{url}: not a valid address: expected https://host/folder") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise SettingsError(f"{url}: not encrypted: pass an https:// address")


class _EncryptedRedirects(HTTPRedirectHandler):
    """Follows redirects to encrypted addresses only."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        """Return the next request."""
        _require_encrypted(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
