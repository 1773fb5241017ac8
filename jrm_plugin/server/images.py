"""Images that requests name instead of sending them: files of the server, URLs, parts of the request."""

import http.client
import ipaddress
import socket
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from jrm_plugin.errors import JRMError
from jrm_plugin.records.images import MeasuredFile
from jrm_plugin.records.wire import image_from_wire
from jrm_plugin.server.settings import ServerSettings

URL_SECONDS = 10.0  # for one image, redirects included
REDIRECTS = 3


class ImageOpener:
    """Gives the bytes of an image for the text that stands for it in one request; each is opened and measured once.

    Args:
        settings: what is allowed.
        parts: the request's files by name.
    """

    def __init__(self, settings: ServerSettings, parts: Mapping[str, bytes]):
        self._settings, self._parts = settings, parts
        self._opened: dict[str, MeasuredFile] = {}

    def __call__(self, image: str) -> MeasuredFile:
        if image not in self._opened:
            self._opened[image] = MeasuredFile(self._open(image))
        return self._opened[image]

    def _open(self, image: str) -> bytes:
        scheme, colon, rest = image[:2048].partition(":")
        if not colon or scheme.lower() == "data":
            return image_from_wire(image)
        if scheme == "cid":
            if rest not in self._parts:
                raise JRMError(f"the image {image[:100]!r} names no file of this request.")
            return self._parts[rest]
        if scheme == "file" and self._settings.allow_paths is not None:
            return _file_inside(rest, self._settings.allow_paths, self._settings.max_body_bytes)
        if scheme in ("http", "https") and self._settings.allow_urls is not None:
            return fetched(image, self._settings.max_body_bytes, any_address=self._settings.allow_urls == "any")
        flag = {"file": "--allow-paths", "http": "--allow-urls", "https": "--allow-urls"}.get(scheme)
        allowed = f", as the server was not started with {flag}" if flag else ""
        raise JRMError(f"an image by {scheme[:20]}: is not taken here{allowed}; send its bytes in base64.")


def _file_inside(path: str, folder: Path, max_bytes: int) -> bytes:
    """The bytes of a file inside a folder, whatever links lead to it."""
    what = f"the image file:{path[:200]}"
    try:
        real = (folder / path.removeprefix("//")).resolve(strict=True)
        if not real.is_relative_to(folder.resolve()) or not real.is_file():
            raise FileNotFoundError
        if real.stat().st_size > max_bytes:
            raise JRMError(f"{what} has more than {max_bytes} bytes.")
        return real.read_bytes()
    except (OSError, ValueError, RuntimeError):  # a null character; a circle of links
        raise JRMError(f"{what} is no file of the folder that this server gives out.") from None


def fetched(url: str, max_bytes: int, *, any_address: bool) -> bytes:
    """The bytes at a URL.

    The address is looked up once, checked, and connected to, so that no name can point elsewhere in between; each
    redirect is checked likewise.

    Raises:
        JRMError: its host has a private address, it is too large or too slow, or does not answer 200.
    """
    shown, deadline = url[:200], time.monotonic() + URL_SECONDS
    for _ in range(REDIRECTS + 1):
        try:
            status, location, content = _get(url, max_bytes, any_address, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, JRMError):
                raise
            raise JRMError(f"the image {shown} cannot be fetched: {type(error).__name__}.") from None
        if status not in (301, 302, 303, 307, 308) or location is None:
            break
        url = urllib.parse.urljoin(url, location)
    if status != 200:
        raise JRMError(f"the image {shown} cannot be fetched: its server answers {status}.")
    return content


def _get(url: str, max_bytes: int, any_address: bool, deadline: float) -> tuple[int, str | None, bytes]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise JRMError(f"the image {url[:200]} has no http or https URL.")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    addresses = {info[4][0] for info in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)}
    if not any_address and not all(map(_is_public, addresses)):
        raise JRMError(f"the image {url[:200]} lies at a private address, which this server does not ask.")
    left = max(deadline - time.monotonic(), 0.1)
    connection = http.client.HTTPConnection(parts.hostname, port, timeout=left)
    connection.sock = socket.create_connection((sorted(addresses)[0], port), left)
    try:
        if secure:
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=parts.hostname)
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "jrm-plugin"})
        response = connection.getresponse()
        if response.status != 200:
            return response.status, response.headers.get("Location"), b""
        content = bytearray()
        while chunk := response.read1(2**16):
            content += chunk
            if len(content) > max_bytes or time.monotonic() > deadline:
                raise JRMError(f"the image {url[:200]} has more than {max_bytes} bytes, or comes too slowly.")
        return 200, None, bytes(content)
    finally:
        connection.close()


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_global and not ip.is_multicast
