"""Downloads from a server on this machine that can misbehave in many ways."""

import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import struct
import threading
import time
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from lesionlib.data import attribute_masks, catalogue, download
from lesionlib.data.download import Source
from lesionlib.data.prompts import ATTRIBUTES
from lesionlib.engine.errors import InputError

NOISE = np.random.default_rng(0).bytes(9000)  # three images of 3000 bytes: no zip makes it smaller
TABLE = b"image_id,melanoma\na,0\nb,1\n"
ROWS = Source("labels", "2017/labels.csv", 2)


class Handler(BaseHTTPRequestHandler):
    """Serves server.files; server.script holds one dict per request of what it does wrong.

    Keys: status, type, etag, range (False: ignored, 'blind': If-Range ignored), cut (bytes after
    which the connection ends), stall (seconds of silence then), length (a false one), body.
    """

    def do_GET(self):
        self.server.requests.append(request := {"range": self.headers.get("Range"), "sent": 0})
        odd = self.server.script.pop(0) if self.server.script else {}
        body, status = odd.get("body", self.server.files.get(self.path)), odd.get("status", 200)
        if body is None or status >= 400:
            return self.send_error(status if status >= 400 else 404)
        etag = odd.get("etag", '"1"')
        whole, first, asked = len(body), 0, self.headers.get("Range")
        fits = self.headers.get("If-Range") == etag or odd.get("range") == "blind"
        if asked and fits and odd.get("range", True):
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            status = 206 if first < whole else 416
        body = body[first:] if status != 416 else b""
        self.send_response(status)
        stated = f"bytes {first}-{whole - 1}/{whole}" if status == 206 else f"bytes */{whole}"
        if status != 200:
            self.send_header("Content-Range", stated)
        self.send_header("ETag", etag)
        self.send_header("Content-Type", odd.get("type", "application/octet-stream"))
        self.send_header("Content-Length", str(odd.get("length", len(body))))
        self.end_headers()
        request["sent"] = len(body[: odd.get("cut")])
        self.wfile.write(body[: odd.get("cut")])
        time.sleep(odd.get("stall", 0))

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_):
        pass  # a client that hangs up early is no concern of the tests


@pytest.fixture
def server(monkeypatch):
    """A server with `files`, `script` and `requests`; its address is `url`."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "BLOCK", 1000)
    server = Server(("127.0.0.1", 0), Handler)
    server.files, server.script, server.requests = {}, [], []
    server.url = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def packed(*extra, top="images/", images=3, method=zipfile.ZIP_STORED) -> bytes:
    """A zip of small `images` below `top` and of `extra` (name or ZipInfo, content)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about two entries of one name, which we want
        for k in range(images):
            archive.writestr(f"{top}ISIC_{k}.jpg", NOISE[3000 * k : 3000 * (k + 1)])
        for name, content in extra:
            archive.writestr(name, content)
    return buffer.getvalue()


def images(content=None, **more) -> Source:
    """The source of a zip of three images, with the sum of `content` if that is given."""
    sha256 = hashlib.sha256(content).hexdigest() if content else ""
    return Source("images", "2018/images.zip", 3, sha256, "*.jpg", **more)


def get(server, folder, *sources, **options):
    """`fetch` from the test's server, without waiting between attempts."""
    return download.fetch(folder, sources, server.url, **{"tries": 3, "wait": 0, **options})


def fails(server, folder, source, *words, **options) -> str:
    """A fetch that must fail; returns its message, which names file, URL or folder and words."""
    with pytest.raises(InputError) as caught:
        get(server, folder, source, **options)
    assert caught.value.where.startswith(str(folder / source.file.removesuffix(".zip")))
    assert caught.value.remedy
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def left(folder) -> set[str]:
    """What is in a folder, apart from the lock and the licences."""
    return {path.name for path in folder.iterdir()} - {".fetch.lock", "LICENCES.md"}


# --- what should happen ---------------------------------------------------------------------


def test_zips_become_folders_tables_stay_and_a_second_run_downloads_nothing(server, tmp_path):
    body = packed(("images/LICENSE.txt", b"CC0"), ("__MACOSX/images/._ISIC_0.jpg", b"x"))
    server.files = {"/2018/images.zip": body, "/2017/labels.csv": TABLE}
    sources = images(body), ROWS
    assert get(server, tmp_path, *sources) == {"images": "fetched", "labels": "fetched"}
    assert left(tmp_path) == {"images", "labels.csv", "manifest.json"}
    names = {"ISIC_0.jpg", "ISIC_1.jpg", "ISIC_2.jpg", "LICENSE.txt", download.RECORD}
    assert left(tmp_path / "images") == names
    assert (tmp_path / "images" / "ISIC_1.jpg").read_bytes() == NOISE[3000:6000]
    assert (tmp_path / "labels.csv").read_bytes() == TABLE
    pins = json.loads((tmp_path / "manifest.json").read_text())
    assert pins["labels.csv"]["sha256"] == hashlib.sha256(TABLE).hexdigest()
    assert pins["labels.csv"]["url"] == server.url + "2017/labels.csv"
    assert pins["images.zip"]["bytes"] == len(body) and pins["images.zip"]["date"].count("-") == 2
    licences = (tmp_path / "LICENCES.md").read_text()
    assert "CC BY-NC 4.0" in licences and "not verified" in licences
    assert all(cited in licences for cited in ("1710.05006", "1902.03368", "180161", "1908.02288"))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert len(server.requests) == 2
    assert set(get(server, tmp_path, *sources).values()) == {"was there"}
    assert len(server.requests) == 2
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


def test_zips_are_kept_on_request_and_checked_again(server, tmp_path):
    server.files["/2018/images.zip"] = body = packed()
    get(server, tmp_path, images(), keep_zips=True)
    assert (tmp_path / "images.zip").read_bytes() == body
    assert get(server, tmp_path, images()) == {"images": "was there"}
    assert (tmp_path / "images.zip").exists() and len(server.requests) == 1
    (tmp_path / "images.zip").write_bytes(body[:-1])
    fails(server, tmp_path, images(), "SHA-256", "images.zip")


def test_a_zip_without_a_top_folder_gives_the_same_layout(server, tmp_path):
    server.files["/2018/images.zip"] = packed(("LICENSE.txt", b"CC0"), top="")
    get(server, tmp_path, images())
    assert (tmp_path / "images" / "ISIC_2.jpg").exists()
    assert (tmp_path / "images" / "LICENSE.txt").exists()


def test_a_file_put_there_by_hand_is_taken_and_not_deleted(server, tmp_path):
    body = packed()
    (tmp_path / "images.zip").write_bytes(body)
    (tmp_path / "labels.csv").write_bytes(TABLE)
    done = get(server, tmp_path, images(body), ROWS)
    assert done == {"images": "unpacked", "labels": "was there"} and not server.requests
    assert left(tmp_path) == {"images", "images.zip", "labels.csv", "manifest.json"}


def test_a_wrong_file_put_there_by_hand_is_named_and_left_alone(server, tmp_path):
    (tmp_path / "images.zip").write_bytes(b"something else")
    server.files["/2018/images.zip"] = body = packed()
    fails(server, tmp_path, images(body), "SHA-256", "delete it", server.url, "in a browser")
    assert (tmp_path / "images.zip").read_bytes() == b"something else"
    assert left(tmp_path) == {"images.zip"} and not server.requests


def test_a_folder_unpacked_by_hand_is_taken_if_it_is_complete(server, tmp_path):
    with zipfile.ZipFile(io.BytesIO(packed())) as archive:
        archive.extractall(tmp_path)
    assert get(server, tmp_path, images(packed())) == {"images": "was there"}
    assert not server.requests
    (tmp_path / "images" / "ISIC_1.jpg").unlink()
    fails(server, tmp_path, images(packed()), "2 of 3", "delete this folder")


def test_a_part_is_deleted_once_the_folder_is_there(server, tmp_path):
    server.files["/2018/images.zip"] = packed()
    server.script = [{"cut": 4500}]
    fails(server, tmp_path, images(), tries=1)
    with zipfile.ZipFile(io.BytesIO(packed())) as archive:
        archive.extractall(tmp_path)
    assert get(server, tmp_path, images()) == {"images": "was there"}
    assert left(tmp_path) == {"images"}


@pytest.mark.parametrize("change", ["missing", "truncated", "another zip"])
def test_a_folder_that_is_not_as_it_was_unpacked_is_named(server, tmp_path, change):
    server.files["/2018/images.zip"] = body = packed()
    get(server, tmp_path, images())
    image, source = tmp_path / "images" / "ISIC_1.jpg", images()
    if change == "missing":
        image.unlink()
    elif change == "truncated":
        image.write_bytes(image.read_bytes()[:-1])
    else:
        source = images(body + b"of another year")
    word = {"missing": "2 of 3", "truncated": "size", "another zip": "another zip"}[change]
    fails(server, tmp_path, source, word)
    assert len(server.requests) == 1


# --- interruptions --------------------------------------------------------------------------


def test_a_cut_connection_goes_on_and_only_the_missing_bytes_are_sent(server, tmp_path):
    server.files["/2018/images.zip"] = body = packed()
    server.script = [{"cut": 4500}, {"cut": 2200}]
    get(server, tmp_path, images(body))
    ranges = [request["range"] for request in server.requests]
    assert ranges == [None, "bytes=4000-", "bytes=6000-"]
    assert server.requests[2]["sent"] == len(body) - 6000
    assert left(tmp_path) == {"images", "manifest.json"}


def test_a_silent_connection_is_given_up_and_goes_on(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.files["/2018/images.zip"] = body = packed()
    server.script = [{"cut": 4500, "stall": 1}]
    get(server, tmp_path, images(body))
    assert [r["range"] for r in server.requests] == [None, "bytes=4000-"]


def test_an_answer_to_a_range_that_is_too_short_is_not_taken_for_the_rest(server, tmp_path):
    server.files["/2018/images.zip"] = body = packed()
    server.script = [{"cut": 4500}, {"length": 2000}]
    get(server, tmp_path, images(body))
    assert [r["range"] for r in server.requests] == [None, "bytes=4000-", "bytes=6000-"]


def test_another_run_goes_on_where_the_first_was_interrupted(server, tmp_path):
    server.files["/2018/images.zip"] = body = packed()
    server.script = [{"cut": 4500}]
    message = fails(server, tmp_path, images(body), "in a browser", tries=1)
    assert server.url + "2018/images.zip" in message and download.MIRROR in message
    assert left(tmp_path) == {"images.zip.part", "images.zip.part.json"}
    get(server, tmp_path, images(body))
    assert server.requests[1] == {"range": "bytes=4000-", "sent": len(body) - 4000}
    assert (tmp_path / "images" / "ISIC_1.jpg").read_bytes() == NOISE[3000:6000]


def test_attempts_are_counted_anew_as_long_as_bytes_come(server, tmp_path):
    server.files["/2018/images.zip"] = body = packed()
    server.script = [{"cut": 1500}, {"cut": 1500}, {"cut": 1500}, {"cut": 1500}]
    get(server, tmp_path, images(body), tries=2)
    assert len(server.requests) == 5


def test_a_server_that_ignores_ranges_begins_anew(server, tmp_path):
    server.files["/2018/images.zip"] = body = packed()
    server.script = [{"cut": 4500}, {"range": False}]
    get(server, tmp_path, images(body))
    assert [r["range"] for r in server.requests] == [None, "bytes=4000-"]
    assert server.requests[1]["sent"] == len(body)


@pytest.mark.parametrize("blind", [False, True])
def test_a_file_that_changed_on_the_server_begins_anew(server, tmp_path, blind):
    server.files["/2018/images.zip"] = body = packed(("images/new.txt", b"1"))
    new = {"etag": '"2"'}
    server.script = [{"body": packed(("images/old.txt", b"2")), "cut": 4500}]
    server.script += [new | {"range": "blind"}, new] if blind else [new]
    get(server, tmp_path, images())
    assert server.requests[-1]["sent"] == len(body)
    assert (tmp_path / "images" / "new.txt").exists()
    assert not (tmp_path / "images" / "old.txt").exists()


def test_without_a_validator_nothing_is_resumed(server, tmp_path):
    server.files["/2018/images.zip"] = body = packed()
    server.script = [{"cut": 4500, "etag": 'W/"1"'}]
    get(server, tmp_path, images(body))
    assert [r["range"] for r in server.requests] == [None, None]


def test_a_part_from_another_mirror_is_not_continued(server, tmp_path):
    server.files["/2018/images.zip"] = server.files["/old/2018/images.zip"] = body = packed()
    server.script = [{"cut": 4500}]
    fails(server, tmp_path, images(body), tries=1)
    download.fetch(tmp_path, [images(body)], server.url + "old", wait=0)
    assert [r["range"] for r in server.requests] == [None, None]


def test_interrupting_says_that_it_goes_on(monkeypatch, tmp_path, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(download.requests, "get", interrupted)
    assert download.main([str(tmp_path)]) == 130
    assert "run this again" in capsys.readouterr().err


# --- servers that err -----------------------------------------------------------------------


def test_too_large_a_stated_length_is_no_matter_if_ranges_tell_the_truth(server, tmp_path):
    frame = len(packed(("images/x.txt", b"")))
    body = packed(("images/x.txt", bytes(-frame % 1000)))
    assert len(body) % 1000 == 0  # whole blocks: no bytes of the first answer are lost
    server.files["/2018/images.zip"] = body
    server.script = [{"length": len(body) + 500}]
    get(server, tmp_path, images(body))
    assert [r["range"] for r in server.requests] == [None, f"bytes={len(body)}-"]


@pytest.mark.parametrize("more", [500, -500])
def test_a_false_length_of_a_zip_is_an_error(server, tmp_path, more):
    server.files["/2018/images.zip"] = body = packed()
    server.script = [{"length": len(body) + more, "range": False}] * 3
    words = ["3 attempts"] if more > 0 else ["SHA-256", f"{len(body) - 500:,} bytes"]
    fails(server, tmp_path, images(body), *words, "in a browser")
    parts = {"images.zip.part", "images.zip.part.json"} if more > 0 else set()
    assert left(tmp_path) == parts and len(server.requests) == (3 if more > 0 else 1)


def test_a_table_with_too_few_rows_is_an_error(server, tmp_path):
    server.files["/2017/labels.csv"] = TABLE
    for length, rows in ((len(TABLE) - 4, 1), (len(TABLE) - 3, 2)):  # the last: 'b' without label
        server.script = [{"length": length}]
        fails(server, tmp_path, ROWS, f"{rows} rows instead of 2")
        assert left(tmp_path) == set()
    assert get(server, tmp_path, ROWS) == {"labels": "fetched"}


def test_a_wrong_file_is_an_error_and_the_next_run_begins_anew(server, tmp_path):
    body = packed()
    server.files["/2018/images.zip"] = packed(("images/other.txt", b"x"))
    fails(server, tmp_path, images(body), "SHA-256", hashlib.sha256(body).hexdigest())
    assert left(tmp_path) == set()
    server.files["/2018/images.zip"] = body
    assert get(server, tmp_path, images(body)) == {"images": "fetched"}
    assert server.requests[1]["range"] is None


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_not_repeated(server, tmp_path, status):
    server.script = [{"status": status}]
    fails(server, tmp_path, images(), str(status), f"{server.url}2018/images.zip", "in a browser")
    assert len(server.requests) == 1 and left(tmp_path) == set()


def test_server_errors_are_repeated_then_reported(server, tmp_path):
    server.files["/2017/labels.csv"] = TABLE
    server.script = [{"status": 503}, {"status": 500}]
    get(server, tmp_path, ROWS)
    assert len(server.requests) == 3
    server.script = [{"status": 500}] * 3
    fails(server, tmp_path, images(), "500", "3 attempts")
    assert len(server.requests) == 6 and left(tmp_path) == {"labels.csv", "manifest.json"}


def test_pauses_grow(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    server.script = [{"status": 500}] * 4
    fails(server, tmp_path, images(), tries=4, wait=0.5)
    assert pauses == [0.5, 1, 2]


@pytest.mark.parametrize("source", [images(), ROWS])
@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "text/csv"])
def test_a_web_page_is_not_taken_for_the_file(server, tmp_path, source, kind):
    server.script = [{"body": b"<html>\n<p>Log in, please\n</html>", "type": kind}]
    word = "usable zip" if source.pattern else "rows of unequal length"
    fails(server, tmp_path, source, "a web page" if "html" in kind else word)
    assert left(tmp_path) == set()


def test_no_network_is_one_clear_error(server, tmp_path):
    server.server_close()
    server.shutdown()
    fails(server, tmp_path, ROWS, "in 3 attempts (Connection refused)", "in a browser")
    assert left(tmp_path) == set()


def test_an_address_that_is_none_is_named(tmp_path):
    with pytest.raises(InputError, match="no web address.*correct --base-url"):
        download.fetch(tmp_path, [ROWS], "nowhere", tries=1)


# --- pins -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, first, second",
    [
        (ROWS, TABLE, TABLE.replace(b"1", b"0")),
        (images(), packed(), packed(("images/LICENSE.txt", b"new"))),
    ],
)
def test_the_first_download_is_pinned(server, tmp_path, source, first, second):
    server.files["/" + source.path] = first
    get(server, tmp_path, source)
    shutil.rmtree(tmp_path / "images", ignore_errors=True)
    (tmp_path / "labels.csv").unlink(missing_ok=True)
    server.files["/" + source.path] = second
    fails(server, tmp_path, source, "manifest.json", hashlib.sha256(first).hexdigest())
    assert left(tmp_path) == {"manifest.json"}
    server.files["/" + source.path] = first
    assert get(server, tmp_path, source) == {source.name: "fetched"}


def test_an_altered_table_is_an_error_until_its_pin_is_deleted(server, tmp_path):
    server.files["/2017/labels.csv"] = TABLE
    get(server, tmp_path, ROWS)
    (tmp_path / "labels.csv").write_bytes(TABLE.replace(b"1", b"0"))
    fails(server, tmp_path, ROWS, "SHA-256", str(tmp_path / "manifest.json"))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json: it is corrupt"):
        get(server, tmp_path, ROWS)
    (tmp_path / "manifest.json").write_text("{}")
    assert get(server, tmp_path, ROWS) == {"labels": "was there"} and len(server.requests) == 1


# --- zips -----------------------------------------------------------------------------------


def flagged_as_encrypted(body: bytes) -> bytes:
    """The zip, whose directory now says that its first entry is encrypted."""
    at = body.index(b"PK\x01\x02")
    return body[: at + 8] + b"\x01" + body[at + 9 :]


def entry(name, mode=stat.S_IFREG | 0o644):
    """A zip entry of this exact name and file mode."""
    info = zipfile.ZipInfo("x")
    info.filename, info.create_system, info.external_attr = name, 3, mode << 16
    return info


def shorter_in_the_directory(body: bytes) -> bytes:
    """The zip, whose directory now says that its first entry has 10 bytes when unpacked."""
    at = body.index(b"PK\x01\x02")
    return body[: at + 24] + struct.pack("<I", 10) + body[at + 28 :]


BOMB = packed(("images/zeros.bin", bytes(5_000_000)), method=zipfile.ZIP_DEFLATED)
UNSAFE = {
    "up": (packed((entry("images/../../evil.txt"), b"x")), "out of the folder"),
    "absolute": (packed((entry("/tmp/evil.txt"), b"x")), "out of the folder"),
    "backslash": (packed((entry("images\\..\\..\\evil.txt"), b"x")), "out of the folder"),
    "drive": (packed((entry("C:evil.txt"), b"x")), "out of the folder"),
    "link": (packed((entry("images/a", stat.S_IFLNK | 0o777), b"/etc/passwd")), "a link"),
    "device": (packed((entry("images/a", stat.S_IFCHR | 0o666), b"")), "a device"),
    "twice": (packed((entry("images/ISIC_0.jpg"), b"x"), images=2), "same name"),
    "case": (packed((entry("images/isic_0.jpg"), b"x"), images=2), "same name"),
    "top": (packed((entry("a.txt"), b"x"), (entry("images/a.txt"), b"x")), "same name"),
    "file and folder": (packed((entry("images/a"), b"x"), (entry("images/a/b"), b"x")), "usable"),
    "truncated": (packed()[:-30], "usable"),
    "not a zip": (b"hello", "usable"),
    "empty": (b"", "usable"),
    "no images": (packed(images=0), "0 instead of 3"),
    "too few": (packed(images=2), "2 instead of 3"),
    "two folders": (packed((entry("other/d.jpg"), b"x"), images=2), "in one folder"),
    "damaged": (packed().replace(NOISE[3000:3100], bytes(100)), "CRC"),
    "false size": (shorter_in_the_directory(packed(method=zipfile.ZIP_DEFLATED)), "usable"),
    "bomb": (BOMB, "hundred times"),
    "encrypted": (flagged_as_encrypted(packed()), "encrypted"),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_bad_zips_are_refused_and_leave_nothing(server, tmp_path, kind):
    server.files["/2018/images.zip"], word = UNSAFE[kind]
    folder = tmp_path / "a" / "b" / "isic"
    fails(server, folder, images(), word, "is not a usable zip", "in a browser")
    assert left(folder) == set()
    found = {path.name for path in tmp_path.rglob("*")}
    assert found == {"a", "b", "isic", ".fetch.lock", "LICENCES.md"}
    server.files["/2018/images.zip"] = packed()
    assert get(server, folder, images()) == {"images": "fetched"}


def test_an_unpacking_that_was_killed_is_done_anew(server, tmp_path):
    server.files["/2018/images.zip"] = packed()
    (tmp_path / ".images.unpacking").mkdir()
    (tmp_path / ".images.unpacking" / "ISIC_0.jpg").write_bytes(b"half")
    get(server, tmp_path, images())
    assert left(tmp_path) == {"images", "manifest.json"}
    assert (tmp_path / "images" / "ISIC_0.jpg").read_bytes() == NOISE[:3000]


# --- disks ----------------------------------------------------------------------------------


def free(monkeypatch, number):
    """Let the disk have `number` free bytes."""
    usage = shutil.disk_usage("/")._replace(free=number)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)


def test_the_disk_must_hold_the_zip_and_what_is_in_it(server, tmp_path, monkeypatch):
    server.files["/2018/images.zip"] = body = packed()
    free(monkeypatch, 2 * len(body) - 1)
    fails(server, tmp_path, images(body), "MB are free", "free some space")
    assert left(tmp_path) == set()
    free(monkeypatch, 2 * len(body))
    get(server, tmp_path, images(body))


def test_what_is_already_there_needs_no_room(server, tmp_path, monkeypatch):
    server.files["/2018/images.zip"] = body = packed()
    server.script = [{"cut": 4500}]
    fails(server, tmp_path, images(body), tries=1)
    free(monkeypatch, 2 * len(body) - 4000)
    assert get(server, tmp_path, images(body)) == {"images": "fetched"}


def test_a_disk_too_small_for_what_is_in_the_zip(server, tmp_path, monkeypatch):
    body = packed(("images/zeros.bin", bytes(100_000)), method=zipfile.ZIP_DEFLATED)
    server.files["/2018/images.zip"] = body
    free(monkeypatch, 100_000)
    fails(server, tmp_path, images(body), "MB are free")
    assert left(tmp_path) == {"images.zip.part", "images.zip.part.json"}
    free(monkeypatch, 10**9)
    get(server, tmp_path, images(body))
    assert len(server.requests) == 1 and left(tmp_path) == {"images", "manifest.json"}


def full_after(monkeypatch, number, suffix):
    """Let files of this suffix take `number` bytes, then no more."""

    def opened(path, mode="r", *arguments, **options):
        file = open(path, mode, *arguments, **options)
        if "r" in mode or not str(path).endswith(suffix):
            return file
        write, written = file.write, [0]

        def limited(block):
            written[0] += len(block)
            if written[0] > number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(block)

        file.write = limited
        return file

    monkeypatch.setattr(download, "open", opened, raising=False)


@pytest.mark.parametrize("suffix", [".part", ".jpg"])
def test_a_disk_that_fills_up_leaves_nothing_half_and_goes_on(
    server, tmp_path, monkeypatch, suffix
):
    server.files["/2018/images.zip"] = body = packed()
    full_after(monkeypatch, 2500, suffix)
    fails(server, tmp_path, images(body), "the disk is full", "resumes where it stopped")
    assert left(tmp_path) == {"images.zip.part", "images.zip.part.json"}
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "*")
    get(server, tmp_path, images(body))
    ranges = [request["range"] for request in server.requests]
    assert ranges == ([None, "bytes=2000-"] if suffix == ".part" else [None])


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be read or written"):
        get(server, tmp_path / "file", ROWS)


def test_two_fetches_do_not_write_to_one_folder(server, tmp_path):
    with open(tmp_path / ".fetch.lock", "a") as lock:
        download.fcntl.flock(lock, download.fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another download"):
            get(server, tmp_path, ROWS)
    server.files["/2017/labels.csv"] = TABLE
    get(server, tmp_path, ROWS)


# --- the sources, the command line, the attributes --------------------------------------------


def mask(path, *pixels):
    """Write a mask of 8 x 9 pixels, 255 at these places."""
    array = np.zeros((8, 9), np.uint8)
    for pixel in pixels:
        array[pixel] = 255
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), array)
    return path.read_bytes()


def write_attribute_masks(folder, flags):
    """Write the five masks of each id; flags: {id: five of 0 and 1}."""
    for i, row in flags.items():
        for name, on in zip(ATTRIBUTES, row, strict=True):
            mask(
                folder / "ISIC2018_Task2_Training_GroundTruth_v3" / f"{i}_attribute_{name}.png",
                *[(7, 8)] * on,
            )


FLAGS = {
    "ISIC_0000001": [1, 0, 0, 1, 0],
    "ISIC_0000000": [0, 0, 0, 0, 0],
    "ISIC_0000003": [0, 1, 1, 0, 1],
}


def test_attributes_are_read_once_from_the_masks(tmp_path, monkeypatch):
    write_attribute_masks(tmp_path, FLAGS)
    flags = attribute_masks.attribute_flags(tmp_path)
    assert list(flags.columns) == ["id", *ATTRIBUTES] and flags["id"].is_monotonic_increasing
    assert {row[0]: list(row[1:]) for row in flags.itertuples(index=False)} == FLAGS
    monkeypatch.setattr(attribute_masks, "is_marked", None)  # would fail if a mask were read again
    assert attribute_masks.attribute_flags(tmp_path).equals(flags)
    shutil.rmtree(tmp_path / "ISIC2018_Task2_Training_GroundTruth_v3")
    assert attribute_masks.attribute_flags(tmp_path).equals(flags)


def test_attributes_are_read_from_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    write_attribute_masks(tmp_path, FLAGS)
    monkeypatch.setattr(attribute_masks, "write_csv", refuse)
    assert len(attribute_masks.attribute_flags(tmp_path)) == len(FLAGS)


def test_attributes_are_read_again_for_other_masks(tmp_path):
    write_attribute_masks(tmp_path, FLAGS)
    attribute_masks.attribute_flags(tmp_path)
    write_attribute_masks(tmp_path, {"ISIC_0000009": [0, 0, 0, 0, 1]})
    assert attribute_masks.attribute_flags(tmp_path)["globules"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("damage", ["missing", "truncated", "none at all"])
def test_attributes_need_every_mask(tmp_path, damage):
    write_attribute_masks(tmp_path, FLAGS)
    folder = tmp_path / "ISIC2018_Task2_Training_GroundTruth_v3"
    path = folder / "ISIC_0000003_attribute_streaks.png"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-25])
    else:
        shutil.rmtree(folder)
    with pytest.raises(InputError) as caught:
        attribute_masks.attribute_flags(tmp_path)
    assert caught.value.where == str(folder if damage == "none at all" else path)
    assert not (tmp_path / "ISIC2018_Task2_Training_attributes.csv").exists()


def zipped(folder) -> bytes:
    """A zip of a folder's files below the folder's name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"{folder.name}/{path.name}")
    return buffer.getvalue()


def test_the_study_reads_what_the_command_fetches(server, tmp_path, monkeypatch, capsys):
    made = tmp_path / "made"
    made.mkdir()
    for i in FLAGS:
        mask(made / "ISIC2018_Task1-2_Training_Input" / f"{i}.jpg")
        mask(made / "ISIC2018_Task1_Training_GroundTruth" / f"{i}_segmentation.png", (3, 3))
    write_attribute_masks(made, FLAGS)
    known = {source.name: source for source in download.SOURCES}
    tables = {
        "labels-2017": b"image_id,melanoma,seborrheic_keratosis\nISIC_0000000,0,0\n",
        "labels-2019": b"image,MEL,NV,BKL\nISIC_0000001,1,0,0\nISIC_0000003_downsampled,0,0,1",
        "metadata-2019": b"image,age_approx,anatom_site_general,sex\nISIC_0000001,55,,male",
    }
    counts = {
        "labels-2017": 1,
        "labels-2019": 2,
        "metadata-2019": 1,
        "train-images": 3,
        "train-masks": 3,
        "attributes": 15,
    }
    sources = [dataclasses.replace(known[n], count=c, sha256="") for n, c in counts.items()]
    for source in sources:
        body = tables.get(source.name)
        server.files["/m/" + source.path] = body or zipped(made / source.file.removesuffix(".zip"))
    monkeypatch.setattr(download, "SOURCES", sources)
    assert download.main([str(tmp_path / "isic"), "--base-url", server.url + "m/"]) == 0
    printed = capsys.readouterr().out
    assert "CC BY-NC" in printed and "[6/6] ISIC2018_Task2_Training_GroundTruth_v3.zip" in printed
    table = catalogue.read_isic(tmp_path / "isic").table.set_index("id")
    assert table["diagnosis"].to_dict() == {
        "ISIC_0000000": "nevus",
        "ISIC_0000001": "melanoma",
        "ISIC_0000003": "benign keratosis",
    }
    assert {i: list(table.loc[i, list(ATTRIBUTES)]) for i in table.index} == FLAGS
    assert table.loc["ISIC_0000001", "age"] == "55" and (table["mask"] != "").all()


def test_only_some_sources(server, tmp_path, capsys):
    root = ["--base-url", server.url]
    server.files["/2017/ISIC-2017_Validation_Part3_GroundTruth.csv"] = (
        b"image_id,m\n" + b"a,0\n" * 150
    )
    assert download.main([str(tmp_path), *root, "--only", "labels-2017-val"]) == 0
    assert left(tmp_path) == {"ISIC-2017_Validation_Part3_GroundTruth.csv", "manifest.json"}
    assert download.main([str(tmp_path), *root, "--only", "train-masks"]) == 2
    assert "404" in capsys.readouterr().err
    assert download.main([str(tmp_path), *root, "--only", "masks"]) == 2
    assert "train-masks" in capsys.readouterr().err


def test_the_list_names_every_file_once_and_fetches_nothing(tmp_path, capsys):
    assert download.main([str(tmp_path / "none"), "--list", "--base-url", download.MIRROR]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(download.SOURCES) and not (tmp_path / "none").exists()
    assert sum("challenges/2018/ISIC2018_Task1-2_Training_Input.zip" in x for x in lines) == 1
    for attribute in ("name", "file"):
        assert len({getattr(source, attribute) for source in download.SOURCES}) == len(lines)
    sums = [source.sha256 for source in download.SOURCES if "Task1" in source.path]
    assert len(sums) == 6 and all(len(bytes.fromhex(value)) == 32 for value in sums)
