"""Downloads, from a server on this machine."""

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from avrec.data.sources import download
from avrec.data.sources.download import fetch, fetch_members
from avrec.errors import UserError

DATA = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(DATA).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.files``; ends after ``server.cut`` bytes of a body where that is set."""

    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        start = 0
        if self.server.ranges and "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : self.server.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked, server.cut, server.ranges = {"/a.bin": DATA}, [], None, True
        server.url = f"http://127.0.0.1:{server.server_port}/a.bin"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_file_is_fetched_once(server, tmp_path):
    target = tmp_path / "new" / "a.bin"
    assert fetch(server.url, target, SHA256) == target
    assert target.read_bytes() == DATA
    assert fetch(server.url, target, SHA256) == target
    assert server.asked == [None]
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(server, tmp_path, ranges):
    target = tmp_path / "a.bin"
    server.cut = 1000
    with pytest.raises(
        UserError, match=r"could not be downloaded: .*1,279,000 bytes too early\. 1,000 bytes are kept; repeat"
    ):
        fetch(server.url, target, SHA256)
    assert not target.exists()
    server.cut, server.ranges = None, ranges  # a server without ranges starts over
    assert fetch(server.url, target, SHA256).read_bytes() == DATA
    assert server.asked == [None, "bytes=1000-"]


def test_what_had_arrived_whole_is_not_fetched_again(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(DATA)
    assert fetch(server.url, tmp_path / "a.bin", SHA256).read_bytes() == DATA


def test_another_checksum(server, tmp_path):
    with pytest.raises(UserError, match=rf"has SHA-256 {SHA256} and must have 00ff: .*It is not kept"):
        fetch(server.url, tmp_path / "a.bin", "00ff")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_beginning_is_dropped(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="damaged in transfer"):
        fetch(server.url, tmp_path / "a.bin", SHA256)
    assert fetch(server.url, tmp_path / "a.bin", SHA256).read_bytes() == DATA


def test_another_file_in_its_place(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"a\.bin exists and is not the file .*Remove it or move it away"):
        fetch(server.url, tmp_path / "a.bin", SHA256)
    assert (tmp_path / "a.bin").read_bytes() == b"mine"
    assert server.asked == []


def test_no_such_address(server, tmp_path):
    with pytest.raises(UserError, match=r"/gone answered 404 Not Found\. Find its new address"):
        fetch(server.url.replace("a.bin", "gone"), tmp_path / "a.bin", SHA256)
    assert list(tmp_path.iterdir()) == []


def test_no_server(tmp_path):
    with pytest.raises(UserError, match=r"could not be downloaded: .*refused.*0 bytes are kept"):
        fetch("http://127.0.0.1:9/a.bin", tmp_path / "a.bin", SHA256)


def test_members_of_a_zip(server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as contents:
        contents.writestr("toy/u.data", "1\t2\n")
        contents.writestr("toy/deep/u.item", "2|x\n")
        contents.writestr("../evil", "x")
    server.files["/toy.zip"] = buffer.getvalue()
    url, sha256 = server.url.replace("a.bin", "toy.zip"), hashlib.sha256(buffer.getvalue()).hexdigest()
    for _ in range(2):
        fetch_members(url, tmp_path / "toy", sha256, ["u.data", "u.item"])
    assert server.asked == [None]
    assert sorted(path.name for path in (tmp_path / "toy").iterdir()) == ["toy.zip", "u.data", "u.item"]
    assert (tmp_path / "toy" / "u.item").read_text() == "2|x\n"
    with pytest.raises(UserError, match=r"toy\.zip holds no u\.user, but evil, u\.data, u\.item"):
        fetch_members(url, tmp_path / "toy", sha256, ["u.user"])


def test_movielens_is_fetched_where_it_was_asked_for(server, tmp_path, monkeypatch):
    from avrec.data.sources.layouts import movielens

    asked = []

    def instead(url, folder, sha256, names):
        asked.append((url.rpartition("/")[2], sha256, names))
        folder.mkdir()
        for name in names:
            (folder / name).write_text("1::1::1::1\n")

    monkeypatch.setattr(movielens, "fetch_members", instead)
    movielens.movielens_1m(tmp_path / "ml", download=True)
    assert asked == [("ml-1m.zip", movielens.SHA256_1M, ["ratings.dat", "movies.dat", "users.dat"])]
    assert len(movielens.SHA256_100K) == len(movielens.SHA256_1M) == 64
    with pytest.raises(UserError, match="is not a folder"):
        movielens.movielens_100k(tmp_path / "other")
    assert len(asked) == 1


def test_progress_is_shown_to_people_alone(server, tmp_path, monkeypatch, capsys):
    fetch(server.url, tmp_path / "a.bin", SHA256)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    fetch(server.url, tmp_path / "b.bin", SHA256)
    assert "b.bin" in capsys.readouterr().err
    assert download.TIMEOUT > 0
