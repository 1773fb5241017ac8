"""Images that a request names: files of one folder, and URLs at public addresses, where the operator allows them."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pictures import png

from jrm_plugin import JRMError
from jrm_plugin.server.images import ImageOpener, fetched
from jrm_plugin.server.settings import ServerSettings

PICTURE = png(3)


class Images(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name.startswith("to-"):
            self.send_response(302)
            self.send_header("Location", name.removeprefix("to-").replace("_", "/"))
            self.end_headers()
            return
        self.send_response(200 if name in ("good.png", "large.png") else 404)
        self.end_headers()
        self.wfile.write(PICTURE if name == "good.png" else b"x" * 5000)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Images) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_image_is_fetched_by_its_url_and_by_redirects(url):
    for name in ("good.png", "to-good.png", "to-to-good.png"):
        assert fetched(f"{url}/{name}", 1000, any_address=True) == PICTURE


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.png", "answers 404"),
        ("large.png", "more than 1000 bytes"),
        ("to-to-to-to-to-good.png", "answers 302"),
        ("to-file:___etc_passwd", "no http or https"),
    ],
)
def test_what_cannot_be_fetched_is_said(url, name, words):
    with pytest.raises(JRMError, match=words):
        fetched(f"{url}/{name}", 1000, any_address=True)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "localhost",
        "10.1.2.3",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[fe80::1]",
        "[fd00::1]",
        "2130706433",
        "0x7f000001",
        "224.0.0.1",
    ],
)
def test_private_addresses_are_not_asked_however_they_are_written(address):
    with pytest.raises(JRMError, match="private address|cannot be fetched"):
        fetched(f"http://{address}:1/x.png", 1000, any_address=False)


def test_files_of_the_folder_are_read_and_no_others(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.png").write_bytes(PICTURE)
    (folder / "inside.png").symlink_to(folder / "sub" / "a.png")
    (tmp_path / "secret.png").write_bytes(PICTURE)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "circle").symlink_to(folder / "circle")
    opener = ImageOpener(ServerSettings("jrm-tiny", allow_paths=folder), {})
    for fine in ("sub/a.png", "inside.png", "sub/../sub/a.png", str(folder / "sub" / "a.png")):
        assert opener(f"file:{fine}") == PICTURE
    outside = ["../secret.png", "link.png", str(tmp_path / "secret.png"), "//" + str(tmp_path / "secret.png")]
    for wrong in (*outside, "sub", "circle", "none.png", "a\0b", "x" * 5000, ""):
        with pytest.raises(JRMError, match="no file of the folder"):
            opener(f"file:{wrong}")
