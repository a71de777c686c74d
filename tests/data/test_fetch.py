"""Downloads from a server on this machine; whatever goes wrong, nothing stays behind."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from minillm.data.fetch import fetch, sha256_of
from minillm.errors import ConfigError, DataError

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.paths.append(self.path)
        kind = self.path.split("/")[1]
        if kind == "missing":
            return self.send_error(404)
        if kind == "away":
            self.send_response(302)
            self.send_header("Location", "http://example.org/file.txt")
            return self.end_headers()
        self.send_response(200)
        if kind != "unannounced":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if kind == "cut" else CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.paths = []
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server, path, folder, sha256=SHA256, max_bytes=256_000, **options):
    url = f"http://127.0.0.1:{server.server_address[1]}/{path}"
    return fetch(url, sha256, max_bytes, folder, allow_http=True, timeout_seconds=5, progress=False, **options)


def left_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", ["good", "unannounced"])
def test_the_file_arrives_once(server, tmp_path, kind):
    n_before = len(server.paths)
    path = get(server, f"{kind}/in%20put.txt?x=1", tmp_path / "new")
    assert path == tmp_path / "new" / "in put.txt" and path.read_bytes() == CONTENT
    assert get(server, f"{kind}/in%20put.txt?x=1", tmp_path / "new") == path
    assert len(server.paths) == n_before + 1 and left_in(tmp_path) == [path]


def test_a_damaged_file_in_the_cache_is_fetched_again(server, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"damaged")
    assert get(server, "good/a.txt", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("good", {"sha256": "0" * 64}, f"has SHA-256 {SHA256}, expected 000"),
        ("good", {"max_bytes": len(CONTENT) - 1}, "announces 256000 bytes, more than the 255999 allowed"),
        ("unannounced", {"max_bytes": len(CONTENT) - 1}, "larger than the 255999 bytes allowed"),
        ("cut", {}, "broke off after 128000 of 256000 bytes"),
        ("missing", {}, "cannot be downloaded .*Not Found"),
    ],
)
def test_nothing_stays_behind(server, tmp_path, kind, options, message):
    (tmp_path / "a.txt").write_bytes(b"older")
    with pytest.raises(DataError, match=message):
        get(server, f"{kind}/a.txt", tmp_path, **options)
    assert left_in(tmp_path) == [tmp_path / "a.txt"] and (tmp_path / "a.txt").read_bytes() == b"older"


def test_interrupted_by_the_user(server, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("minillm.data.fetch.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(server, "good/a.txt", tmp_path)
    assert left_in(tmp_path) == []


def test_no_server(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_address[1]
    with pytest.raises(DataError, match="cannot be downloaded .*check the network"):
        fetch(f"http://127.0.0.1:{port}/a.txt", SHA256, 10, tmp_path, allow_http=True, progress=False)
    assert left_in(tmp_path) == []


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be downloaded"):
        get(server, "good/a.txt", tmp_path / "file" / "sub")


@pytest.mark.parametrize("url", ["http://example.org/a.txt", "ftp://127.0.0.1/a.txt", "file:///etc/passwd", "a.txt"])
@pytest.mark.parametrize("allow_http", [False, True])
def test_only_https(tmp_path, url, allow_http):
    with pytest.raises(ConfigError, match="not an https address"):
        fetch(url, SHA256, 10, tmp_path, allow_http=allow_http)


def test_local_http_must_be_asked_for(server, tmp_path):
    with pytest.raises(ConfigError, match="not an https address"):
        fetch(f"http://127.0.0.1:{server.server_address[1]}/good/a.txt", SHA256, len(CONTENT), tmp_path)


def test_a_redirection_out_of_https_is_not_followed(server, tmp_path):
    with pytest.raises(ConfigError, match="example.org.* not an https address"):
        get(server, "away/a.txt", tmp_path)
    assert left_in(tmp_path) == []


def test_an_address_without_a_file_name(tmp_path):
    with pytest.raises(ConfigError, match="does not end in a file name"):
        fetch("https://example.org/", SHA256, 10, tmp_path)


def test_sha256_of_a_large_file(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT * 10)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(CONTENT * 10).hexdigest()
