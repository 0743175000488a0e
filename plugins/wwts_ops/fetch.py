"""The bytes behind a catalog URI, or a rejection.

A manifest is untrusted input, so is every server it names:

- a local path never blocks (no pipes, no devices) and is never read past the size limit;
- ``https://`` goes only to hosts on ``WWTS_HTTPS_HOSTS``, and only to public addresses. The address that was
  checked is the one connected to, so a second DNS answer cannot lead elsewhere; certificate, SNI and ``Host``
  still belong to the name. Each redirect is checked like a new URI. Proxies of the environment are not used;
- ``s3://`` goes only to ``WWTS_S3_ENDPOINT``.

Details of rejections never hold query strings (signed URLs) or credentials.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from types import TracebackType
from typing import Any
from urllib.parse import unquote

import fsspec
import httpcore
import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_before_delay, wait_random_exponential

from wwts_ops.errors import WwtsError
from wwts_ops.images import Rejected
from wwts_ops.settings import Settings
from wwts_ops.storage import s3_options

Address = IPv4Address | IPv6Address

MAX_REDIRECTS = 5
ATTEMPTS = 3

_UNREADABLE = "unreadable_uri"
_TOO_LARGE = "too_large"
_CHUNK = 2**20
_MAX_SHOWN = 200
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,255}")  # what botocore accepts, less ARNs
_LISTABLE = re.compile(r"[^/?#@*\\%\s]+")
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_WHY = {errno.ENOENT: "there is no such file", errno.EACCES: "no permission to read it"}


class _Passing(Rejected):
    """A rejection that another try may lift."""


def check_uri(uri: str, settings: Settings) -> str | None:
    """Whether :meth:`Fetcher.read` would try ``uri`` at all; looks at the text only, never at disk or network.

    Args:
        uri: an absolute path, ``file://``, ``s3://bucket/key`` or ``https://host/…``.
        settings: the list of hosts is read from them.

    Returns:
        None if it would, else one sentence why not, without query string or credentials.

    Raises:
        WwtsError: when ``WWTS_HTTPS_HOSTS`` itself is wrong.
    """
    if flaw := _check_text(uri):
        return flaw
    if uri.startswith("/"):
        return None
    scheme = _scheme(uri)
    if scheme == "https":
        return _check_https(uri, settings)
    return {"file": _check_file, "s3": _check_s3}.get(scheme, _check_other)(uri)


def is_public(address: Address) -> bool:
    """Whether ``address`` is a unicast address of the public internet.

    IPv4 inside IPv6 (mapped, NAT64, 6to4) is judged by the IPv4 address that traffic ends at; Teredo is
    refused, and so is every other IPv6 address outside ``2000::/3``.
    """
    inner = _embedded(address)
    if inner is not None:
        return is_public(inner)
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class Fetcher:
    """Reads catalog URIs; used from many threads at once. A context manager: leaving it closes connections.

    Args:
        settings: size limit, hosts, time limit, S3 endpoint.
        resolve: as :func:`socket.getaddrinfo`.
        is_allowed: which addresses ``https://`` may connect to.
        ssl_context: how servers are verified; default: httpx's (``SSL_CERT_FILE``, else certifi).

    Raises:
        WwtsError: when ``WWTS_HTTPS_HOSTS`` is wrong.
    """

    def __init__(
        self,
        settings: Settings,
        resolve: Callable[..., Iterable[Any]] = socket.getaddrinfo,
        is_allowed: Callable[[Address], bool] = is_public,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        _allowed_hosts(settings.https_hosts)
        self._settings = settings
        self._s3 = _S3(settings)
        self._backend = _CheckedBackend(resolve, is_allowed)
        if ssl_context is None:
            # Loading the trusted authorities takes 70 ms; without any allowed host nothing ever connects.
            empty = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            ssl_context = httpx.create_ssl_context() if settings.https_hosts else empty
        self._https = _Https(settings, self._backend, ssl_context)

    def read(self, uri: str) -> bytes:
        """All bytes of ``uri``, at most ``settings.max_image_bytes``.

        Raises:
            Rejected: ``too_large``, or ``unreadable_uri`` for everything else that went wrong.
        """
        if flaw := check_uri(uri, self._settings):
            raise Rejected(_UNREADABLE, flaw)
        if uri.startswith("/"):
            return _read_local(uri, self._settings.max_image_bytes)
        scheme = _scheme(uri)
        if scheme == "file":
            return _read_local(_file_path(uri), self._settings.max_image_bytes)
        return self._s3.read(uri) if scheme == "s3" else self._https.read(uri)

    def close(self) -> None:
        """Closes connections; a read under way elsewhere may fail."""
        self._https.close()
        self._backend.close()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# --- what a URI says -------------------------------------------------------------------------------------------------


def _scheme(uri: str) -> str:
    scheme, found, _ = uri.partition("://")
    return scheme.lower() if found else ""


def _rest(uri: str) -> str:
    return uri.partition("://")[2]


def _file_path(uri: str) -> str:
    """The path of a ``file://`` URI; a bare ``?`` or ``#`` is part of the name, as people mean it."""
    return unquote(_rest(uri).removeprefix("localhost"), errors="surrogateescape")


def _check_text(uri: str) -> str | None:
    if not uri:
        return "The uri is empty"
    if _CONTROL.search(uri):
        return f"{_shown(uri)} contains a control character"
    return f"{_shown(uri)} is not valid Unicode" if _SURROGATE.search(uri) else None


def _check_file(uri: str) -> str | None:
    path = _file_path(uri)
    if not path.startswith("/"):
        return f"{_shown(uri)} names another machine; write file:/// and an absolute path"
    if _CONTROL.search(path):
        return f"{_shown(uri)} contains a control character"
    return None


def _check_s3(uri: str) -> str | None:
    bucket, _, key = _rest(uri).partition("/")
    if not _BUCKET.fullmatch(bucket) or not key or key.endswith("/"):
        return f"{_shown(uri)} names no object; write s3://bucket/key"
    return None


def _check_https(uri: str, settings: Settings) -> str | None:
    try:
        url = httpx.URL(uri)
    except httpx.InvalidURL:
        return f"{_shown(uri)} is not a valid address"
    if url.userinfo:
        return f"{_shown(uri)} holds a user name or password; remove it from the address"
    host, port = _host_and_port(url)
    if not host:
        return f"{_shown(uri)} names no host"
    if (host, port) not in _allowed_hosts(settings.https_hosts):
        name = host if port == 443 else f"{host}:{port}"
        return f"{_shown(uri)}: host {name} is not on WWTS_HTTPS_HOSTS; add it if its images may be read"
    return None


def _check_other(uri: str) -> str:
    scheme = _scheme(uri)
    if scheme == "http":
        return f"{_shown(uri)}: http:// is not allowed; use https://"
    if scheme:
        return f"{_shown(uri)}: {scheme}:// is not supported; use a path, file://, s3:// or https://"
    return f"{_shown(uri)} is neither an absolute path nor a file://, s3:// or https:// address"


def _host_and_port(url: httpx.URL) -> tuple[str, int]:
    return url.raw_host.decode("ascii").lower(), 443 if url.port is None else url.port


@lru_cache(maxsize=8)
def _allowed_hosts(entries: tuple[str, ...]) -> frozenset[tuple[str, int]]:
    return frozenset(_host_entry(entry) for entry in entries)


def _host_entry(entry: str) -> tuple[str, int]:
    try:
        host, port = _host_and_port(httpx.URL(f"https://{entry}"))
    except httpx.InvalidURL:
        host, port = "", 0
    if not (host and 0 < port < 2**16 and _LISTABLE.fullmatch(entry)):
        raise WwtsError(f"WWTS_HTTPS_HOSTS: {entry!r} is no host; write a name or name:port, such as img.example.com")
    return host, port


def _shown(uri: str) -> str:
    """``uri`` as it may stand in a report: short, no credentials, no query (a signature may be in it)."""
    if not uri.startswith("/") and _scheme(uri) != "file":
        uri = re.sub(r"(?<=://)[^/?#]*@", "", re.split("[?#]", uri, maxsplit=1)[0])
    return _plain(uri)


def _plain(text: str) -> str:
    """Foreign ``text`` on one line, without queries of URLs in it."""
    text = _SURROGATE.sub("�", _CONTROL.sub("�", text))
    text = re.sub(r"(https?://[^\s?#]*)[?#]\S*", r"\1", text)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _too_large(name: str, size: int | None, limit: int) -> Rejected:
    has = "has more than" if size is None else f"has {size:,} bytes, more than"
    return Rejected(_TOO_LARGE, f"{name} {has} the {limit:,} bytes that WWTS_MAX_IMAGE_BYTES allows")


# --- local files -----------------------------------------------------------------------------------------------------


def _read_local(path: str, limit: int) -> bytes:
    name = _shown(path)
    try:
        # Looked at before it is opened, because opening a device can already do something; and again
        # afterwards, because the name may have changed hands in between.
        _check_regular(os.stat(path), name, limit)
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            _check_regular(os.fstat(handle), name, limit)
            data = b"".join(_chunks(handle, limit + 1))
        finally:
            os.close(handle)
    except OSError as error:
        why = _WHY.get(error.errno or 0, error.strerror or type(error).__name__)
        raise Rejected(_UNREADABLE, f"{name} could not be read: {why}") from error
    if len(data) > limit:
        raise _too_large(name, None, limit)
    return data


def _check_regular(status: os.stat_result, name: str, limit: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise Rejected(_UNREADABLE, f"{name} is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise Rejected(_UNREADABLE, f"{name} is a pipe, a device or a socket, not a file")
    if status.st_size > limit:
        raise _too_large(name, status.st_size, limit)


def _chunks(handle: int, most: int) -> Iterator[bytes]:
    while most and (chunk := os.read(handle, min(most, _CHUNK))):
        most -= len(chunk)
        yield chunk


# --- s3:// -----------------------------------------------------------------------------------------------------------


class _S3:
    """Objects of the one S3-compatible endpoint."""

    def __init__(self, settings: Settings) -> None:
        self._endpoint = settings.s3_endpoint
        self._limit = settings.max_image_bytes
        self._lock = threading.Lock()
        self._made: fsspec.AbstractFileSystem | None = None

    def read(self, uri: str) -> bytes:
        path, name = f"s3://{_rest(uri)}", _shown(uri)
        with _s3_told(name):
            fs = self._fs()
            info = fs.info(path)
            if info["type"] != "file":
                raise Rejected(_UNREADABLE, f"{name} is a folder, not an object")
            size = int(info["size"])
            if size > self._limit:
                raise _too_large(name, size, self._limit)
            # The range of an empty object is an error; the object may also have been replaced meanwhile.
            data = bytes(fs.cat_file(path, start=0, end=self._limit + 1)) if size else b""
        if len(data) > self._limit:
            raise _too_large(name, None, self._limit)
        return data

    def _fs(self) -> fsspec.AbstractFileSystem:
        with self._lock:
            if self._made is None:
                fs = fsspec.filesystem("s3", **s3_options(self._endpoint))
                fs.connect()  # here, under the lock: first calls from many threads would each make a session
                self._made = fs
            return self._made


@contextmanager
def _s3_told(name: str) -> Iterator[None]:
    from aiohttp import ClientError as BodyError
    from botocore import exceptions as boto

    try:
        yield
    except (OSError, boto.BotoCoreError, boto.ClientError, BodyError) as error:
        raise Rejected(_UNREADABLE, f"{name} could not be read: {_s3_why(error)}") from error


def _s3_why(error: Exception) -> str:
    from botocore import exceptions as boto

    if isinstance(error, FileNotFoundError):
        cause = error.__cause__
        code = cause.response.get("Error", {}).get("Code") if isinstance(cause, boto.ClientError) else ""
        return "the bucket does not exist" if code == "NoSuchBucket" else "there is no such object"
    if isinstance(error, PermissionError):
        return "access denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return "no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, boto.ConnectionError):
        return "the S3 server did not answer; check WWTS_S3_ENDPOINT"
    return _plain(str(error)) or type(error).__name__


# --- https:// --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Deadline:
    """When one read, all its tries and redirects together, must be over."""

    name: str
    seconds: float
    at: float

    def cap(self, timeout: float | None) -> float:
        left = self.at - time.monotonic()
        if left <= 0:
            raise Rejected(_UNREADABLE, f"{self.name} took longer than {self.seconds:g} s")
        return left if timeout is None else min(left, timeout)


# httpcore hands its streams only the time limit of one step, which a server that drips bytes never reaches.
# A read stays on one thread, so a context variable reaches every step of it.
_DEADLINE: ContextVar[_Deadline] = ContextVar("wwts_fetch_deadline")


class _Https:
    """GET from listed hosts, with limits on time, size, redirects and tries."""

    def __init__(self, settings: Settings, backend: httpcore.NetworkBackend, ssl_context: ssl.SSLContext) -> None:
        self._settings = settings
        # Straight on httpcore: httpx has no public way to set the network backend.
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl_context, max_connections=None, keepalive_expiry=30.0, network_backend=backend
        )
        # A third of the time for a server that says nothing, so that the further tries fit in.
        step = settings.https_timeout / ATTEMPTS
        self._extensions = {"timeout": {"connect": step, "read": step, "write": step, "pool": step}}
        self._headers = [(b"User-Agent", b"wwts-ops"), (b"Accept", b"*/*"), (b"Accept-Encoding", b"identity")]

    def read(self, uri: str) -> bytes:
        seconds = self._settings.https_timeout
        token = _DEADLINE.set(_Deadline(_shown(uri), seconds, time.monotonic() + seconds))
        tries = Retrying(
            retry=retry_if_exception_type(_Passing),
            stop=stop_after_attempt(ATTEMPTS) | stop_before_delay(seconds),
            wait=wait_random_exponential(multiplier=0.2, max=1.0),
            reraise=True,
        )
        try:
            return tries(self._follow, httpx.URL(uri))
        finally:
            _DEADLINE.reset(token)

    def close(self) -> None:
        self._pool.close()

    def _follow(self, url: httpx.URL) -> bytes:
        first = _shown(str(url))
        for _ in range(MAX_REDIRECTS + 1):
            with self._get(url) as response:
                if response.status not in _REDIRECTS:
                    return self._body(response, _shown(str(url)))
                location = _header(response, b"location")
            url = self._redirected(url, location)
        raise Rejected(_UNREADABLE, f"{first} redirects more than {MAX_REDIRECTS} times")

    @contextmanager
    def _get(self, url: httpx.URL) -> Iterator[httpcore.Response]:
        host, port = _host_and_port(url)
        target = httpcore.URL(scheme=b"https", host=host.encode(), port=port, target=url.raw_path)
        with (
            _https_told(_shown(str(url))),
            self._pool.stream("GET", target, headers=self._headers, extensions=self._extensions) as response,
        ):
            yield response

    def _redirected(self, url: httpx.URL, location: str) -> httpx.URL:
        said = f"{_shown(str(url))} redirects"
        try:
            new = url.join(location)
        except httpx.InvalidURL as error:
            raise Rejected(_UNREADABLE, f"{said} to an invalid address") from error
        if not location or new.scheme != "https":
            raise Rejected(_UNREADABLE, f"{said} to {_shown(str(new)) if location else 'nowhere'}, not to https://")
        if flaw := check_uri(str(new), self._settings):
            raise Rejected(_UNREADABLE, f"{said}; {flaw}")
        return new

    def _body(self, response: httpcore.Response, name: str) -> bytes:
        limit = self._settings.max_image_bytes
        _check_response(response, name)
        length = _header(response, b"content-length")
        if length.isdecimal() and int(length) > limit:
            raise _too_large(name, int(length), limit)
        data = bytearray()
        for chunk in response.iter_stream():
            data += chunk
            if len(data) > limit:
                raise _too_large(name, None, limit)
        return bytes(data)


def _check_response(response: httpcore.Response, name: str) -> None:
    if response.status >= 500:
        raise _Passing(_UNREADABLE, f"{name}: the server answered {response.status}")
    if response.status != 200:
        raise Rejected(_UNREADABLE, f"{name}: the server answered {response.status}")
    encoding = _header(response, b"content-encoding").lower()
    if encoding not in {"", "identity"}:
        # A few kilobytes can unpack to gigabytes, and we asked for none of it.
        raise Rejected(_UNREADABLE, f"{name}: the server sent it compressed ({_plain(encoding)}), unasked")


def _header(response: httpcore.Response, name: bytes) -> str:
    found = [value for key, value in response.headers if key.lower() == name]
    return found[0].decode("utf-8", "replace").strip() if found else ""


@contextmanager
def _https_told(name: str) -> Iterator[None]:
    try:
        yield
    except httpcore.TimeoutException as error:
        raise _Passing(_UNREADABLE, f"{name}: the server did not answer in time") from error
    except httpcore.ConnectError as error:
        kind = Rejected if isinstance(error.__cause__, ssl.SSLCertVerificationError) else _Passing
        raise kind(_UNREADABLE, f"{name}: no connection: {_plain(str(error))}") from error
    except (httpcore.NetworkError, httpcore.RemoteProtocolError) as error:
        raise _Passing(_UNREADABLE, f"{name}: the connection broke: {_plain(str(error))}") from error
    except httpcore.LocalProtocolError as error:
        raise Rejected(_UNREADABLE, f"{name} cannot be asked for: {_plain(str(error))}") from error


class _CheckedBackend(httpcore.NetworkBackend):
    """Connects to the very address that was checked, never to a name."""

    def __init__(self, resolve: Callable[..., Iterable[Any]], is_allowed: Callable[[Address], bool]) -> None:
        self._lookup = resolve
        self._is_allowed = is_allowed
        self._tcp = httpcore.SyncBackend()
        # A name server that is silent cannot be interrupted, only left behind.
        self._threads = ThreadPoolExecutor(16, thread_name_prefix="wwts-dns")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Tries the checked addresses of ``host`` in turn."""
        deadline = _DEADLINE.get()
        failure: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for address in self._addresses(host, port, timeout):
            try:
                stream = self._tcp.connect_tcp(str(address), port, deadline.cap(timeout), local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream)
        raise failure or Rejected(_UNREADABLE, f"{deadline.name}: host {host} has no address")

    def _addresses(self, host: str, port: int, timeout: float | None) -> list[Address]:
        found = self._resolve(host, port, timeout)
        for address in found:
            if not self._is_allowed(address):
                name = _DEADLINE.get().name
                raise Rejected(_UNREADABLE, f"{name}: host {host} leads to {address}, which is not a public address")
        return found

    def _resolve(self, host: str, port: int, timeout: float | None) -> list[Address]:
        deadline = _DEADLINE.get()
        asked = self._threads.submit(self._lookup, host, port, type=socket.SOCK_STREAM)
        try:
            answers = asked.result(deadline.cap(timeout))
        except TimeoutError as error:
            raise _Passing(_UNREADABLE, f"{deadline.name}: looking up host {host} took too long") from error
        except (OSError, UnicodeError) as error:
            passing = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            kind = _Passing if passing else Rejected
            raise kind(_UNREADABLE, f"{deadline.name}: host {host} was not found: {_plain(str(error))}") from error
        return list(dict.fromkeys(ip_address(answer[4][0]) for answer in answers))


class _TimedStream(httpcore.NetworkStream):
    """A stream each step of which ends by the deadline of the read it serves."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _DEADLINE.get().cap(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _DEADLINE.get().cap(timeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, _DEADLINE.get().cap(timeout)))

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _embedded(address: Address) -> IPv4Address | None:
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
