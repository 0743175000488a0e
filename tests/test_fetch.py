"""Reading catalog URIs: real files, a real HTTPS server on the loopback, a real S3 server."""

from __future__ import annotations

import datetime
import gzip
import ipaddress
import itertools
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import duckdb
import fsspec
import pytest
from conftest import S3Server
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from wwts_ops import catalog
from wwts_ops import settings as settings_module
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.fetch import ATTEMPTS, MAX_REDIRECTS, Address, Fetcher, check_uri, is_public
from wwts_ops.images import Rejected
from wwts_ops.settings import Settings
from wwts_ops.storage import s3_options

LIMIT = 100_000
PHOTO = bytes(range(256)) * 40
HOST, CDN, STRANGER, INSIDE, CHINESE = "img.shop.test", "cdn.shop.test", "evil.test", "db.shop.test", "图片.shop.test"
CHINESE_ASCII = CHINESE.encode("idna").decode()
LOOPBACK = ipaddress.ip_address("127.0.0.1")
NAMES = [
    "红富士 苹果.jpg",
    "100%.jpg",
    "%41%2F.jpg",
    "a#b?c=d.jpg",
    "😀👨‍👩‍👧.jpg",
    "a+b&c;d.jpg",
    "a\\b.jpg",
    "-rf.jpg",
]


def make_settings(tmp_path: Path, **given: object) -> Settings:
    return settings_module.load(**{"store": str(tmp_path / "store"), "max_image_bytes": LIMIT, **given})


def rejection(fetcher: Fetcher, uri: str) -> Rejected:
    with pytest.raises(Rejected) as caught:
        fetcher.read(uri)
    return caught.value


# --- local -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Fetcher]:
    with Fetcher(make_settings(tmp_path)) as fetcher:
        yield fetcher


@pytest.mark.parametrize("name", NAMES)
def test_names_of_local_files_are_plain_characters(local: Fetcher, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PHOTO)
    assert local.read(str(path)) == PHOTO
    assert local.read(path.as_uri()) == PHOTO
    assert local.read(f"FILE://localhost{path.as_uri().removeprefix('file://')}") == PHOTO


def test_file_uri_takes_bare_question_mark_and_hash_as_part_of_the_name(local: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "什么? #1.jpg").write_bytes(PHOTO)
    assert local.read(f"file://{tmp_path}/什么? #1.jpg") == PHOTO


def test_symlinks_are_followed(local: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "target.jpg").write_bytes(PHOTO)
    (tmp_path / "link.jpg").symlink_to("target.jpg")
    assert local.read(str(tmp_path / "link.jpg")) == PHOTO


def test_a_file_of_exactly_the_limit_is_read_and_one_byte_more_is_too_large(local: Fetcher, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(b"x" * LIMIT)
    assert len(local.read(str(path))) == LIMIT
    path.write_bytes(b"x" * (LIMIT + 1))
    error = rejection(local, str(path))
    assert error.reason == "too_large"
    assert "100,001" in error.detail
    assert "x.jpg" in error.detail


def test_empty_file_is_read_as_no_bytes(local: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    assert local.read(str(tmp_path / "empty.jpg")) == b""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs a /proc whose files lie about their size")
def test_the_limit_holds_for_a_file_that_says_it_is_empty(tmp_path: Path) -> None:
    assert os.stat("/proc/self/status").st_size == 0
    with Fetcher(make_settings(tmp_path, max_image_bytes=100)) as fetcher:
        assert rejection(fetcher, "/proc/self/status").reason == "too_large"


def test_what_is_no_regular_file_is_refused_without_blocking(local: Fetcher, tmp_path: Path) -> None:
    fifo, unix = tmp_path / "fifo.jpg", tmp_path / "socket.jpg"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(unix))
        for path in (fifo, unix, Path("/dev/zero"), Path("/dev/stdin")):
            error = rejection(local, str(path))
            assert error.reason == "unreadable_uri"
            assert str(path) in error.detail
    (tmp_path / "link.jpg").symlink_to(fifo)
    assert "pipe" in rejection(local, str(tmp_path / "link.jpg")).detail
    assert "folder" in rejection(local, str(tmp_path)).detail


def test_local_files_that_cannot_be_opened_say_why(local: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "file").touch()
    missing = rejection(local, str(tmp_path / "没有.jpg"))
    assert missing.reason == "unreadable_uri"
    assert "没有.jpg" in missing.detail
    assert "no such file" in missing.detail
    for name in ("loop.jpg", "file/x.jpg", f"{'x' * 300}.jpg"):
        assert rejection(local, str(tmp_path / name)).reason == "unreadable_uri"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission_is_told(local: Fetcher, tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.touch(mode=0)
    assert "permission" in rejection(local, str(path)).detail


# --- check_uri -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "/a/b.jpg",
        "/图 片/😀👨‍👩‍👧 100%.jpg",
        "file:///a/%E5%9B%BE.jpg",
        "s3://bucket/图/a b?c#d.jpg",
        f"https://{HOST}/a.jpg?sig=1",
        f"HTTPS://{HOST.upper()}:443/a.jpg",
        f"https://{CHINESE}/a.jpg",
        f"https://{CHINESE_ASCII}/a.jpg",
        f"https://{CDN}:8443/a.jpg",
    ],
)
def test_readable_uris_pass(tmp_path: Path, uri: str) -> None:
    listed = make_settings(tmp_path, https_hosts=(HOST, f"{CDN.upper()}:8443", CHINESE))
    assert check_uri(uri, listed) is None


@pytest.mark.parametrize(
    ("uri", "word"),
    [
        ("", "empty"),
        ("a/b.jpg", "absolute path"),
        ("data:image/png;base64,AAAA", "absolute path"),
        ("/a\x00b.jpg", "control character"),
        ("/a\nb.jpg", "control character"),
        ("file:///a%00b.jpg", "control character"),
        ("/a\udcff.jpg", "Unicode"),
        ("file://server/share/a.jpg", "another machine"),
        ("ftp://host/a.jpg", "ftp://"),
        ("http://img.shop.test/a.jpg", "use https://"),
        ("s3://bucket", "s3://bucket/key"),
        ("s3://bucket/folder/", "s3://bucket/key"),
        ("s3://用户/key", "s3://bucket/key"),
        ("https://", "no host"),
        ("https:///a.jpg", "no host"),
        (f"https://{STRANGER}/a.jpg", "WWTS_HTTPS_HOSTS"),
        (f"https://{HOST}:8443/a.jpg", "WWTS_HTTPS_HOSTS"),
        (f"https://{CDN}/a.jpg", "WWTS_HTTPS_HOSTS"),
        (f"https://{HOST}./a.jpg", "WWTS_HTTPS_HOSTS"),
        (f"https://x.{HOST}/a.jpg", "WWTS_HTTPS_HOSTS"),
        (f"https://{HOST}@{STRANGER}/a.jpg", "password"),
        (f"https://{HOST}\\@{STRANGER}/a.jpg", "password"),
        (f"https://{HOST}:99999999999/a.jpg", "WWTS_HTTPS_HOSTS"),
        ("https://[::1/a.jpg", "not a valid address"),
    ],
)
def test_other_uris_are_refused_with_a_sentence(tmp_path: Path, uri: str, word: str) -> None:
    listed = make_settings(tmp_path, https_hosts=(HOST, f"{CDN}:8443"))
    flaw = check_uri(uri, listed)
    assert flaw is not None
    assert word in flaw
    assert "\n" not in flaw
    with Fetcher(listed) as fetcher:
        error = rejection(fetcher, uri)
    assert (error.reason, error.detail) == ("unreadable_uri", flaw)


@pytest.mark.parametrize(
    "uri",
    [
        f"https://{STRANGER}/a.jpg?Signature=SECRET",
        f"https://{STRANGER}/a.jpg#SECRET",
        f"https://user:SECRET@{HOST}/a.jpg",
        f"http://user:SECRET@{HOST}/a.jpg?x=SECRET",
        "ftp://user:SECRET@host/a.jpg",
        "s3://b/?X-Amz-Signature=SECRET",
    ],
)
def test_sentences_hold_no_secret(tmp_path: Path, uri: str) -> None:
    flaw = check_uri(uri, make_settings(tmp_path, https_hosts=(HOST,)))
    assert flaw is not None
    assert "SECRET" not in flaw


def test_no_host_is_listed_by_default(tmp_path: Path) -> None:
    assert check_uri(f"https://{HOST}/a.jpg", make_settings(tmp_path)) is not None


@pytest.mark.parametrize("entry", ["https://a.test", "*.a.test", "a.test/x", "u@a.test", "a test", "a.test:0", "[::1"])
def test_wrong_entries_in_the_list_of_hosts_are_told(tmp_path: Path, entry: str) -> None:
    wrong = make_settings(tmp_path, https_hosts=(entry,))
    with pytest.raises(WwtsError, match="WWTS_HTTPS_HOSTS"):
        Fetcher(wrong)
    with pytest.raises(WwtsError, match="WWTS_HTTPS_HOSTS"):
        check_uri(f"https://{HOST}/a.jpg", wrong)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "223.5.5.5", "2400:3200::1", "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # the metadata service of most clouds
        "100.100.100.200",  # Alibaba Cloud's
        "192.0.2.1",
        "224.0.0.251",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fc00::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
        "64:ff9b::a9fe:a9fe",  # NAT64 of 169.254.169.254
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::1",  # 6to4 of 127.0.0.1
        "2002:a00:1::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


# --- https -----------------------------------------------------------------------------------------------------------


@dataclass
class Shop:
    """A running HTTPS server: the port, its authority's certificate, and how often each path was asked for."""

    port: int
    authority: Path
    asked: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)

    def url(self, path: str, host: str = HOST) -> str:
        return f"https://{host}:{self.port}{path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shop: Shop

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.shop.asked[path] += 1
        self.shop.headers.append({name.lower(): value for name, value in self.headers.items()})
        word = path.strip("/").partition("/")[0]
        try:
            getattr(self, f"answer_{word}", self.answer_photo)(path)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_photo(self, path: str) -> None:
        self.answer(200, PHOTO)

    def answer_exports(self, path: str) -> None:
        """A manifest with a relative uri; `query` says whether the signature came along."""
        query = self.path.partition("?")[2]
        self.answer(200, f"image_id,uri,title\n007,图/红 酒.jpg,{query}\n".encode())

    def answer_status(self, path: str) -> None:
        self.answer(int(path.rsplit("/", 1)[1]), b"oops")

    def answer_flaky(self, path: str) -> None:
        self.answer(503 if self.shop.asked[path] == 1 else 200, PHOTO)

    def answer_broken(self, path: str) -> None:
        """The first time, the connection breaks in the middle of the body."""
        if self.shop.asked[path] > 1:
            self.answer(200, PHOTO)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(PHOTO)))
        self.end_headers()
        self.wfile.write(PHOTO[:100])
        self.close_connection = True

    def answer_redirect(self, path: str) -> None:
        """`/redirect/302/<target>`; the target is percent-encoded twice in the URL."""
        _, _, status, target = path.split("/", 3)
        self.answer(int(status), Location=unquote(target))

    def answer_hops(self, path: str) -> None:
        left = int(path.rsplit("/", 1)[1])
        self.answer(302, Location=f"/hops/{left - 1}") if left else self.answer(200, PHOTO)

    def answer_loop(self, path: str) -> None:
        self.answer(302, Location="/loop")

    def answer_nowhere(self, path: str) -> None:
        self.answer(302)

    def answer_announced(self, path: str) -> None:
        """Says it is larger than it will ever send."""
        self.send_response(200)
        self.send_header("Content-Length", str(LIMIT + 1))
        self.end_headers()

    def answer_chunked(self, path: str) -> None:
        """`/chunked/<bytes>`, without saying how many."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        left = int(path.rsplit("/", 1)[1])
        while left:
            size = min(left, 10_000)
            self.wfile.write(b"%x\r\n%s\r\n" % (size, b"x" * size))
            left -= size
        self.wfile.write(b"0\r\n\r\n")

    def answer_gzip(self, path: str) -> None:
        self.answer(200, gzip.compress(PHOTO), Content_Encoding="gzip")

    def answer_identity(self, path: str) -> None:
        self.answer(200, PHOTO, Content_Encoding="identity")

    def answer_drip(self, path: str) -> None:
        """A whole, right answer, but a byte at a time: eight seconds in all."""
        self.send_response(200)
        self.send_header("Content-Length", "160")
        self.end_headers()
        for _ in range(160):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def answer_dripping_headers(self, path: str) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Slow: " + b"x" * 120 + b"\r\n\r\nok":
            self.wfile.write(bytes([byte]))
            time.sleep(0.05)

    def answer_silence(self, path: str) -> None:
        """Nothing for longer than any limit here, then a right answer."""
        time.sleep(4)
        self.answer(200, PHOTO)


def write_certificate(folder: Path) -> Path:
    """A self-signed certificate for the shop's hosts, and its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "wwts test")])
    now = datetime.datetime.now(datetime.UTC)
    hosts = [x509.DNSName(host) for host in (HOST, CDN, INSIDE, CHINESE_ASCII)]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "shop.pem"
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave in the middle are part of these tests."""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    pem = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    handler = type("ShopHandler", (Handler,), {})
    server = Server(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    handler.shop = Shop(server.server_address[1], pem)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield handler.shop
    server.shutdown()
    thread.join()
    server.socket.close()


def answers(*addresses: str) -> list[tuple[object, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]


def resolve(host: str, port: int, **kwargs: object) -> list[tuple[object, ...]]:
    return answers("10.0.0.1" if host == INSIDE else "127.0.0.1")


def public_or_here(address: Address) -> bool:
    return address == LOOPBACK or is_public(address)


def make_fetcher(shop: Shop, tmp_path: Path, **given: object) -> Fetcher:
    hosts = tuple(f"{host}:{shop.port}" for host in (HOST, CDN, INSIDE, CHINESE, "unnamed.shop.test"))
    settings = make_settings(tmp_path, https_hosts=hosts, https_timeout=given.pop("timeout", 20.0))
    context = ssl.create_default_context(cafile=shop.authority)
    seams = {"resolve": resolve, "is_allowed": public_or_here, "ssl_context": context, **given}
    return Fetcher(settings, **seams)


@pytest.fixture
def web(shop: Shop, tmp_path: Path) -> Iterator[Fetcher]:
    with make_fetcher(shop, tmp_path) as fetcher:
        yield fetcher


def quoted(target: str) -> str:
    return "".join(f"%25{byte:02X}" for byte in target.encode())


def test_reads_over_https_under_the_name_of_the_host(web: Fetcher, shop: Shop) -> None:
    assert web.read(shop.url("/苹果 1.jpg?sig=a%2Fb")) == PHOTO
    assert shop.asked == {"/苹果 1.jpg": 1}
    assert shop.headers[0]["host"] == f"{HOST}:{shop.port}"
    assert shop.headers[0]["accept-encoding"] == "identity"
    assert web.read(shop.url("/b.jpg", CHINESE)) == PHOTO
    assert shop.headers[1]["host"] == f"{CHINESE_ASCII}:{shop.port}"


def test_a_manifest_is_read_under_the_rules_for_images(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.create_default_context(cafile=shop.authority)
    seams = partial(Fetcher, resolve=resolve, is_allowed=public_or_here, ssl_context=context)
    monkeypatch.setattr(catalog, "Fetcher", seams)
    found = make_settings(tmp_path, https_hosts=(f"{HOST}:{shop.port}",), catalog=shop.url("/exports/m.csv?sig=1"))
    with duckdb.connect() as con:
        source = catalog.load(con, found)
        assert source.catalog == shop.url("/exports/m.csv"), "tonight's signature is no part of what the catalog is"
        rows = con.execute("SELECT image_id, uri, title FROM catalog").fetchall()
        assert rows == [("007", shop.url("/exports/图/红 酒.jpg"), "sig=1")]
        assert not con.execute("FROM broken").fetchall()
    for path, error in (("/status/404/m.csv", UnavailableError), ("/photo", WwtsError)):
        with duckdb.connect() as con, pytest.raises(error):
            catalog.load(con, found.model_copy(update={"catalog": shop.url(path)}))
    elsewhere = found.model_copy(update={"catalog": "https://evil.example/m.csv"})
    with duckdb.connect() as con, pytest.raises(WwtsError, match="not on WWTS_HTTPS_HOSTS"):
        catalog.load(con, elsewhere)


def test_many_threads_share_one_fetcher(web: Fetcher, shop: Shop) -> None:
    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(lambda n: len(web.read(shop.url(f"/chunked/{n}"))), range(1, 65)))
    assert sizes == list(range(1, 65))


def test_loopback_is_refused_unless_allowed(shop: Shop, tmp_path: Path) -> None:
    with make_fetcher(shop, tmp_path, is_allowed=is_public) as fetcher:
        error = rejection(fetcher, shop.url("/a.jpg"))
    assert error.reason == "unreadable_uri"
    assert "127.0.0.1" in error.detail
    assert "not a public address" in error.detail
    assert not shop.asked


def test_one_private_address_among_several_refuses_the_host(shop: Shop, tmp_path: Path) -> None:
    with make_fetcher(shop, tmp_path, resolve=lambda *_, **__: answers("127.0.0.1", "10.0.0.1")) as fetcher:
        assert "10.0.0.1" in rejection(fetcher, shop.url("/a.jpg")).detail
    assert not shop.asked


def test_the_checked_address_is_the_one_connected_to(shop: Shop, tmp_path: Path) -> None:
    """A name server that answers differently the second time is never asked a second time."""
    turns = itertools.chain([answers("127.0.0.1")], itertools.repeat(answers("10.0.0.1")))
    lookups: list[str] = []

    def rebinding(host: str, port: int, **kwargs: object) -> list[tuple[object, ...]]:
        lookups.append(host)
        return next(turns)

    with make_fetcher(shop, tmp_path, resolve=rebinding) as fetcher:
        assert fetcher.read(shop.url("/a.jpg")) == PHOTO
    assert lookups == [HOST]


def test_the_next_address_is_tried_when_one_does_not_answer(shop: Shop, tmp_path: Path) -> None:
    with make_fetcher(
        shop,
        tmp_path,
        resolve=lambda *_, **__: answers("127.0.0.99", "127.0.0.1"),
        is_allowed=lambda address: address.is_loopback,
    ) as fetcher:
        assert fetcher.read(shop.url("/a.jpg")) == PHOTO


def test_unknown_host_is_told(shop: Shop, tmp_path: Path) -> None:
    def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with make_fetcher(shop, tmp_path, resolve=unknown) as fetcher:
        error = rejection(fetcher, shop.url("/a.jpg?sig=SECRET"))
    assert "was not found" in error.detail
    assert HOST in error.detail
    assert "SECRET" not in error.detail


def test_silent_name_server_is_left_behind(shop: Shop, tmp_path: Path) -> None:
    ended = threading.Event()

    def silent(*_: object, **__: object) -> list[tuple[object, ...]]:
        ended.wait(20)
        return answers("127.0.0.1")

    with make_fetcher(shop, tmp_path, resolve=silent, timeout=0.6) as fetcher:
        error = rejection(fetcher, shop.url("/a.jpg"))
        ended.set()
    assert "looking up" in error.detail


def test_certificate_must_be_for_the_host_and_trusted(web: Fetcher, shop: Shop, tmp_path: Path) -> None:
    assert "certificate" in rejection(web, shop.url("/a.jpg", "unnamed.shop.test")).detail.lower()
    with make_fetcher(shop, tmp_path, ssl_context=None) as fetcher:
        assert "certificate" in rejection(fetcher, shop.url("/a.jpg")).detail.lower()
    assert not shop.asked


def test_refused_connection_is_told(shop: Shop, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, not listening: nobody answers there
        settings = make_settings(tmp_path, https_hosts=(f"{HOST}:{free.getsockname()[1]}",))
        with Fetcher(settings, resolve, public_or_here) as fetcher:
            error = rejection(fetcher, f"https://{HOST}:{free.getsockname()[1]}/a.jpg")
    assert error.reason == "unreadable_uri"
    assert "no connection" in error.detail


def test_proxies_of_the_environment_are_not_used(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with make_fetcher(shop, tmp_path) as fetcher:
        assert fetcher.read(shop.url("/a.jpg")) == PHOTO


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_to_listed_hosts_are_followed(web: Fetcher, shop: Shop, status: int) -> None:
    assert web.read(shop.url(f"/redirect/{status}/{quoted(shop.url('/new.jpg', CDN))}")) == PHOTO
    assert shop.headers[-1]["host"] == f"{CDN}:{shop.port}"
    assert web.read(shop.url(f"/redirect/{status}/{quoted('/relative.jpg')}")) == PHOTO
    assert shop.asked["/relative.jpg"] == 1


@pytest.mark.parametrize(
    ("target", "word"),
    [
        (f"https://{STRANGER}/a.jpg?sig=SECRET", "WWTS_HTTPS_HOSTS"),
        (f"https://{HOST}/other-port.jpg?sig=SECRET", "WWTS_HTTPS_HOSTS"),
        (f"http://{HOST}/a.jpg?sig=SECRET", "not to https://"),
        ("file:///etc/passwd", "not to https://"),
        ("s3://bucket/key?SECRET", "not to https://"),
        (f"https://user:SECRET@{HOST}/a.jpg", "password"),
        (f"//{STRANGER}/a.jpg", "WWTS_HTTPS_HOSTS"),
        ("https://[::1/a.jpg", "invalid address"),
    ],
)
def test_redirects_elsewhere_are_refused(web: Fetcher, shop: Shop, target: str, word: str) -> None:
    error = rejection(web, shop.url(f"/redirect/302/{quoted(target)}"))
    assert error.reason == "unreadable_uri"
    assert word in error.detail
    assert "SECRET" not in error.detail
    assert shop.asked.total() == 1


def test_redirect_to_a_private_address_is_refused(web: Fetcher, shop: Shop) -> None:
    error = rejection(web, shop.url(f"/redirect/302/{quoted(shop.url('/a.jpg', INSIDE))}"))
    assert "10.0.0.1, which is not a public address" in error.detail


def test_redirect_without_location_is_refused(web: Fetcher, shop: Shop) -> None:
    assert "nowhere" in rejection(web, shop.url("/nowhere")).detail


def test_redirects_are_limited(web: Fetcher, shop: Shop) -> None:
    assert web.read(shop.url(f"/hops/{MAX_REDIRECTS}")) == PHOTO
    assert "redirects more than 5 times" in rejection(web, shop.url(f"/hops/{MAX_REDIRECTS + 1}")).detail
    shop.asked.clear()
    assert "redirects more than 5 times" in rejection(web, shop.url("/loop")).detail
    assert shop.asked == {"/loop": MAX_REDIRECTS + 1}


def test_size_limit_by_header(web: Fetcher, shop: Shop) -> None:
    error = rejection(web, shop.url("/announced?sig=SECRET"))
    assert error.reason == "too_large"
    assert "100,001" in error.detail
    assert "SECRET" not in error.detail
    assert shop.asked == {"/announced": 1}


def test_size_limit_without_header(web: Fetcher, shop: Shop) -> None:
    assert len(web.read(shop.url(f"/chunked/{LIMIT}"))) == LIMIT
    assert rejection(web, shop.url(f"/chunked/{LIMIT + 1}")).reason == "too_large"


@pytest.mark.parametrize("path", ["/drip", "/dripping_headers", "/silence"])
def test_slow_answers_are_cut(shop: Shop, tmp_path: Path, path: str) -> None:
    """Each would be answered rightly in the end, within the twenty seconds of the other tests."""
    with make_fetcher(shop, tmp_path, timeout=0.9) as fetcher:
        error = rejection(fetcher, shop.url(path))
    assert error.reason == "unreadable_uri"
    assert ("in time" in error.detail) or ("took longer than 0.9 s" in error.detail)


@pytest.mark.parametrize("status", [204, 206, 400, 403, 404, 410, 429])
def test_other_statuses_are_told_and_not_tried_again(web: Fetcher, shop: Shop, status: int) -> None:
    error = rejection(web, shop.url(f"/status/{status}?sig=SECRET"))
    assert error.reason == "unreadable_uri"
    assert f"answered {status}" in error.detail
    assert "SECRET" not in error.detail
    assert shop.asked.total() == 1


@pytest.mark.parametrize("path", ["/flaky", "/broken"])
def test_passing_failures_are_tried_again(web: Fetcher, shop: Shop, path: str) -> None:
    assert web.read(shop.url(path)) == PHOTO
    assert shop.asked == {path: 2}


def test_tries_are_limited(web: Fetcher, shop: Shop) -> None:
    assert "answered 503" in rejection(web, shop.url("/status/503")).detail
    assert shop.asked == {"/status/503": ATTEMPTS}


def test_compressed_bodies_are_refused(web: Fetcher, shop: Shop) -> None:
    error = rejection(web, shop.url("/gzip"))
    assert error.reason == "unreadable_uri"
    assert "gzip" in error.detail
    assert web.read(shop.url("/identity")) == PHOTO


# --- s3 --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(s3_server: S3Server) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("s3", **s3_options(s3_server.endpoint))


@pytest.fixture
def objects(s3_server: S3Server, tmp_path: Path) -> Iterator[Fetcher]:
    with Fetcher(make_settings(tmp_path, s3_endpoint=s3_server.endpoint)) as fetcher:
        yield fetcher


@pytest.mark.parametrize("name", ["a.jpg", "图/红富士 苹果 100%.jpg", "a#b?c=d.jpg", "😀.jpg"])
def test_reads_objects(objects: Fetcher, s3_server: S3Server, bucket: fsspec.AbstractFileSystem, name: str) -> None:
    bucket.pipe_file(f"{s3_server.bucket}/fetch/{name}", PHOTO)
    assert objects.read(f"s3://{s3_server.bucket}/fetch/{name}") == PHOTO


def test_objects_have_the_size_limit(objects: Fetcher, s3_server: S3Server, bucket: fsspec.AbstractFileSystem) -> None:
    uri = f"s3://{s3_server.bucket}/fetch/size.jpg"
    for size in (0, 1, LIMIT):
        bucket.pipe_file(uri, b"x" * size)
        assert len(objects.read(uri)) == size
    bucket.pipe_file(uri, b"x" * (LIMIT + 1))
    error = rejection(objects, uri)
    assert error.reason == "too_large"
    assert "100,001" in error.detail


def test_many_threads_read_objects(objects: Fetcher, s3_server: S3Server, bucket: fsspec.AbstractFileSystem) -> None:
    uris = [f"s3://{s3_server.bucket}/fetch/many/{n}" for n in range(16)]
    for n, uri in enumerate(uris):
        bucket.pipe_file(uri, b"%d" % n)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(objects.read, uris)) == [b"%d" % n for n in range(16)]


def test_missing_objects_buckets_and_folders_are_told(
    objects: Fetcher, s3_server: S3Server, bucket: fsspec.AbstractFileSystem
) -> None:
    bucket.pipe_file(f"{s3_server.bucket}/fetch/folder/a.jpg", PHOTO)
    for uri, word in (
        (f"s3://{s3_server.bucket}/fetch/none.jpg?sig=SECRET", "no such object"),
        ("s3://no-such-bucket/a.jpg", "bucket does not exist"),
        (f"s3://{s3_server.bucket}/fetch/folder", "folder"),
    ):
        error = rejection(objects, uri)
        assert error.reason == "unreadable_uri"
        assert word in error.detail
        assert "SECRET" not in error.detail


def test_wrong_and_missing_credentials_are_told(
    s3_server: S3Server, bucket: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://{s3_server.bucket}/fetch/credentials.jpg"
    bucket.pipe_file(uri, PHOTO)
    settings = make_settings(tmp_path, s3_endpoint=s3_server.endpoint)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with Fetcher(settings) as fetcher:
        assert "access denied" in rejection(fetcher, uri).detail
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with Fetcher(settings) as fetcher:
        error = rejection(fetcher, uri)
    assert error.reason == "unreadable_uri"
    assert "no S3 credentials" in error.detail
