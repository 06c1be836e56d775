"""The ISIC downloads of the study: `python -m lesionlib.data.download [DIR]` (default `data/isic`).

Downloads ISIC 2018 Task 1 (images and masks of its three parts), the attribute masks of Task 2, and
the label tables of 2017 and 2019. Each zip is unpacked to a folder of its name in DIR, the layout
that `catalogue.read_isic` expects. Interrupted downloads resume. Nothing gets its final name before
it has been checked: against the published SHA-256 if there is one, else against the checksum that
the first download pinned in DIR/manifest.json, and always by the number of images or rows. A
downloaded zip is deleted after unpacking unless --keep-zips is given. Files that you put into DIR
yourself are used and never deleted: a file with the right checksum, or a folder without a record of
ours that holds the right number of images.

Not included: the metadata tables of 2017, which are only available inside zips of several
gigabytes; the table of 2019 has age and sex for about 90 % of the training images of Task 1.
"""

import argparse
import csv
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import sys
import time
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import requests

from lesionlib.data.attribute_masks import attribute_flags
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import read_json, resolve, write_json
from lesionlib.engine.progress import progress

BASE_URL = "https://isic-challenge-data.s3.amazonaws.com/"
MIRROR = "https://isic-archive.s3.amazonaws.com/challenges/"  # older, same paths
TIMEOUT = (10, 60)  # seconds to connect, and without data
RESUMES = "free some space, or give another DIR; a download resumes where it stopped"
BLOCK = 1 << 17  # bytes read and written at once
RECORD = "fetched.json"  # in an unpacked folder: hash of its zip, number and bytes of its images


@dataclass(frozen=True)
class Source:
    """One download: a zip if it has a `pattern`, else a CSV; `path` ends in the file name."""

    name: str  # for --only
    path: str  # below the base URL
    count: int  # of images that match the pattern, or of rows of the CSV
    sha256: str = ""  # empty if none is published; then the first download is pinned
    pattern: str = ""  # of the images in the zip
    size: str = ""  # approximate, shown by --list

    @property
    def file(self) -> str:
        return self.path.rsplit("/", 1)[-1]


_18, _MASK = "2018/ISIC2018_", "*_segmentation.png"
# fmt: off
SOURCES = [  # small ones first, so that a missing network shows at once
    Source("labels-2017", "2017/ISIC-2017_Training_Part3_GroundTruth.csv", 2000),
    Source("labels-2017-val", "2017/ISIC-2017_Validation_Part3_GroundTruth.csv", 150),
    Source("labels-2017-test", "2017/ISIC-2017_Test_v2_Part3_GroundTruth.csv", 600),
    Source("labels-2019", "2019/ISIC_2019_Training_GroundTruth.csv", 25331, size="1.2 MB"),
    Source("metadata-2019", "2019/ISIC_2019_Training_Metadata.csv", 25331, size="1.2 MB"),
    Source("val-masks", _18 + "Task1_Validation_GroundTruth.zip", 100,
           "f6911e9c0a64e6d687dd3ca466ca927dd5e82145cb2163b7a1e5b37d7a716285", _MASK, "0.8 MB"),
    Source("test-masks", _18 + "Task1_Test_GroundTruth.zip", 1000,
           "2e8f6edce454a5bdee52485e39f92bd6eddf357e81f39018d05512175238ef82", _MASK),
    Source("train-masks", _18 + "Task1_Training_GroundTruth.zip", 2594,
           "99f8b2bb3c4d6af483362010715f7e7d5d122d9f6c02cac0e0d15bef77c7604c", _MASK, "27 MB"),
    Source("attributes", _18 + "Task2_Training_GroundTruth_v3.zip", 2594 * 5,
           pattern="*_attribute_*.png"),
    Source("val-images", _18 + "Task1-2_Validation_Input.zip", 100,
           "0ea920fcfe512d12a6e620b50b50233c059f67b10146e1479c82be58ff15a797", "*.jpg", "239 MB"),
    Source("test-images", _18 + "Task1-2_Test_Input.zip", 1000,
           "e59ae1f69f4ed16f09db2cb1d76c2a828487b63d28f6ab85997f5616869b127d", "*.jpg", "2.3 GB"),
    Source("train-images", _18 + "Task1-2_Training_Input.zip", 2594,
           "80f98572347a2d7a376227fa9eb2e4f7459d317cb619865b8b9910c81446675f", "*.jpg", "10.4 GB"),
]
# fmt: on
TERMS = """# Licences and citations of the ISIC downloads

As we understand them, **not verified**: read the terms at https://challenge.isic-archive.com/data
and the licence and attribution files in the folders. Treat everything here as data for
non-commercial research, and do not pass the images on.

- ISIC 2017 (labels): understood to be CC0.
- ISIC 2018, Tasks 1 and 2 (images, masks, attributes): the images up to ISIC_0000554 (UDA-1) are
  CC0 1.0; the others are understood to be CC0, but Dataset Ninja lists all of 2018 as CC BY-NC 4.0.
- ISIC 2019 (labels, metadata) and HAM10000: CC BY-NC 4.0.

Please cite

- ISIC 2017: Codella et al. 2017, arXiv:1710.05006
- ISIC 2018: Codella et al. 2018, arXiv:1902.03368; Tschandl et al. 2018, Sci. Data 5, 180161
- ISIC 2019: both of these and Combalia et al. 2019, arXiv:1908.02288
"""


@contextmanager
def disk_errors(path):
    """Turn file system errors into an InputError about `path`."""
    try:
        yield
    except BlockingIOError as error:
        raise InputError(
            path, "another download is running in this folder", "wait until it ends"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(path, "the disk is full", RESUMES) from error
        problem = f"cannot be read or written ({error})"
        raise InputError(path, problem, "check its permissions, or give another DIR") from error


def require_space(path, needed: int):
    """Raise InputError if the disk of `path` has less than `needed` free bytes."""
    if (free := shutil.disk_usage(path.parent).free) < needed:
        problem = f"needs {needed / 1e6:,.1f} MB, unpacking included; {free / 1e6:,.1f} MB are free"
        raise InputError(path, problem, RESUMES)


def partial_files(final) -> list[Path]:
    """Paths of a file's partial download and of the facts about it (url, validator, bytes)."""
    return [final.with_name(final.name + ending) for ending in (".part", ".part.json")]


def delete_partial(final):
    """Delete the partial download of a file."""
    for path in partial_files(final):
        path.unlink(missing_ok=True)


def address(source, base_url: str) -> str:
    """The URL of a source."""
    return f"{base_url.rstrip('/')}/{source.path}"


def manual_remedy(url, final) -> str:
    """The remedy for a failed download."""
    again = f"run this again, perhaps with --base-url {MIRROR}"
    return f"{again}, or download {url} in a browser, save it as {final} and run this again"


def wrong_file(found, final, url, problem) -> InputError:
    """An InputError about a wrong file; if it is our download (FINAL.part), it is deleted."""
    if found == final:
        return InputError(final, problem, f"delete it, then {manual_remedy(url, final)}")
    delete_partial(final)
    return InputError(final, f"the download from {url} {problem}", manual_remedy(url, final))


def validator(response) -> str:
    """The value for If-Range: the ETag, or Last-Modified if the ETag is weak."""
    tag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified", "") if tag.startswith("W/") else tag


def try_download(url, final, copies: int):
    """One request that starts or resumes FINAL.part and completes it.

    Raises requests.RequestException if another attempt may help, else InputError. FINAL.part is
    kept for the next attempt.
    """
    part, about = partial_files(final)
    known, headers = read_json(about, {}), {"Accept-Encoding": "identity"}
    have = part.stat().st_size if part.exists() and known.get("url") == url else 0
    if have and have == known["bytes"]:
        return
    if have and known["validator"]:  # without it a change of the file would go unnoticed
        headers |= {"Range": f"bytes={have}-", "If-Range": known["validator"]}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        code, stated = response.status_code, response.headers.get("Content-Range", "")
        first, size = re.fullmatch(r"(?:bytes (\d+|\*)\S*/(\d+))?.*", stated).groups()
        if code == 416 and have and size == str(have):
            return  # the length stated first was wrong: the file is complete
        changed = first != str(have) or validator(response) not in ("", known.get("validator"))
        if code == 416 or code == 206 and changed:
            delete_partial(final)
            raise requests.ConnectionError("the file on the server has changed")
        if code >= 500 or code in (408, 429):
            raise requests.ConnectionError(f"the server answers {code} {response.reason}")
        if code not in (200, 206):
            problem = f"the server answers {code} {response.reason} for {url}"
            raise InputError(final, problem, manual_remedy(url, final))
        if response.headers.get("Content-Type", "").startswith("text/html"):
            problem = f"a web page came instead of {url} (a login, or a proxy of your network?)"
            raise InputError(final, problem, manual_remedy(url, final))
        save(response, url, final, have if code == 206 else 0, size, copies)


def save(response, url, final, have: int, size: str | None, copies: int):
    """Write the bytes of a response to FINAL.part from byte `have` on.

    `size`: that of the whole file if the response states it; `copies` times as much disk space is
    required. Raises InputError if there is less, requests.RequestException if bytes are missing.
    """
    part, about = partial_files(final)
    whole = int(size or response.headers.get("Content-Length") or 0) or None
    require_space(final, copies * (whole or 0) - have)
    with byte_bar(final.name, whole, have) as bar, open(part, "ab" if have else "wb") as file:
        if not have:
            write_json(about, {"url": url, "validator": validator(response), "bytes": whole})
        for block in response.iter_content(BLOCK):
            file.write(block)
            bar.update(len(block))
    if whole and part.stat().st_size != whole:
        raise requests.ConnectionError(f"{part.stat().st_size:,} of {whole:,} bytes arrived")


def byte_bar(name: str, total: int | None, done: int = 0):
    """A progress bar in bytes."""
    bar = progress(desc=name, total=total, initial=done)
    bar.unit, bar.unit_scale = "B", True
    return bar


def download(url, final, copies: int = 1, tries: int = 5, wait: float = 1.0) -> Path:
    """Download `url` to FINAL.part and return that path; resumes where an earlier call stopped.

    Raises InputError after `tries` consecutive attempts that brought no new bytes, with pauses of
    `wait` seconds, twice that, and so on; refusals (404), web pages and a full disk raise at once.
    """
    part, failures, most = partial_files(final)[0], 0, 0
    while True:
        try:
            try_download(url, final, copies)
            return part
        except ValueError as error:  # requests rejects the address
            raise InputError(url, f"is no web address ({error})", "correct --base-url") from error
        except requests.RequestException as error:
            size = part.stat().st_size if part.exists() else 0
            failures, most = 1 if size > most else failures + 1, max(size, most)
            if failures >= tries:
                cause = re.search(r"\[Errno -?\d+\] ([\w ]+)", str(error))
                problem = f"{url} could not be fetched in {tries} attempts "
                problem += f"({cause[1] if cause else error})"
                raise InputError(final, problem, manual_remedy(url, final)) from error
            time.sleep(wait * 2 ** (failures - 1))


def verify(found, final, url, source, pin: dict) -> dict:
    """URL, bytes, SHA-256 and date of a file; InputError if the SHA-256 is not as expected."""
    size, digest = found.stat().st_size, hashlib.sha256()
    with byte_bar(f"check {final.name}", size) as bar, open(found, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    digest, due = digest.hexdigest(), source.sha256 or pin.get("sha256")
    if due and digest != due:
        problem = f"has {size:,} bytes and SHA-256 {digest}, not {due}"
        if not source.sha256:
            problem += f" as on {pin['date']} (if the change is intended, delete its entry from "
            problem += f"{final.with_name('manifest.json')})"
        raise wrong_file(found, final, url, problem)
    return {"url": url, "bytes": size, "sha256": digest, "date": time.strftime("%Y-%m-%d")}


def check_table(found, final, url, source):
    """Raise InputError unless a CSV has the expected number of rows, all as long as its header."""
    try:
        with open(found, newline="", encoding="utf-8-sig") as file:
            rows = [len(row) for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise wrong_file(found, final, url, f"is not a CSV ({error})") from error
    if len(rows) != source.count + 1 or len(set(rows)) > 1:
        problem = f"is not the table: {max(0, len(rows) - 1):,} rows instead of {source.count:,},"
        raise wrong_file(found, final, url, f"{problem} or rows of unequal length")


def members(archive, source) -> list:
    """(entry, path in the new folder) of a zip's files, without its top-level folder.

    Raises BadZipFile for links, devices, paths that leave the folder, equal names, compression by
    more than a factor of 100, and a wrong number of images.
    """
    files = []
    for info in archive.infolist():
        path, file_type = PurePosixPath(info.filename), stat.S_IFMT(info.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or re.search(r"[\\:]", info.filename):
            raise zipfile.BadZipFile(f"the entry {info.filename!r} leads out of the folder")
        if file_type not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise zipfile.BadZipFile(f"the entry {info.filename!r} is a link or a device")
        if not info.is_dir() and path.parts[:1] != ("__MACOSX",):
            files.append((info, path))
    if sum(info.file_size for info, _ in files) > 100 * os.path.getsize(archive.filename) + 2**20:
        raise zipfile.BadZipFile("it would unpack to more than a hundred times its size")
    images = [path for _, path in files if path.match(source.pattern)]
    top = images[0].parent if images else PurePosixPath(".")
    if len(images) != source.count or any(path.parent != top for path in images):
        due = f"{source.count:,} files {source.pattern} in one folder"
        raise zipfile.BadZipFile(f"it holds {len(images):,} instead of {due}")
    files = [(i, p.relative_to(top) if p.is_relative_to(top) else p) for i, p in files]
    if len({str(path).lower() for _, path in files}) < len(files):
        raise zipfile.BadZipFile("two of its entries have the same name")
    return files


def image_totals(folder, source) -> dict:
    """Number and total bytes of the images in an unpacked folder."""
    sizes = [path.stat().st_size for path in folder.glob(source.pattern)]
    return {"count": len(sizes), "bytes": sum(sizes)}


def unpack(found, final, url, source, sha256: str):
    """Unpack a zip to the folder of its name, which appears only once it is complete.

    Raises InputError if the zip is damaged, unsafe or incomplete, or the disk too small.
    """
    new = final.with_name(f".{final.stem}.unpacking")
    shutil.rmtree(new, ignore_errors=True)
    try:
        with zipfile.ZipFile(found) as archive:
            files = members(archive, source)
            require_space(final, sum(info.file_size for info, _ in files))
            for info, path in progress(files, desc=f"unpack {final.name}"):
                (new / path).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as packed, open(new / path, "xb") as file:
                    shutil.copyfileobj(packed, file, BLOCK)
        write_json(new / RECORD, image_totals(new, source) | {"sha256": sha256})
        os.replace(new, final.with_suffix(""))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, FileExistsError) as error:
        raise wrong_file(found, final, url, f"is not a usable zip ({error})") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def is_unpacked(folder, source, due: str | None) -> bool:
    """Whether the folder exists and is complete; InputError if it is incomplete or was changed."""
    if not folder.exists():
        return False
    record, now = read_json(folder / RECORD, {}), image_totals(folder, source)
    problem = f"holds {now['count']:,} of {source.count:,} files {source.pattern}"
    if record and due not in (None, record["sha256"]):
        problem = "was unpacked from another zip than the expected one"
    elif now["count"] == source.count and record.get("bytes", now["bytes"]) == now["bytes"]:
        return True
    elif now["count"] == source.count:
        problem = "has images of another size than those that were unpacked"
    raise InputError(folder, problem, "rename or delete this folder and run this again")


def fetch_one(folder, source, base_url, keep_zips: bool, tries: int, wait: float) -> str:
    """Download one source to `folder`; returns the outcome. Raises InputError as `fetch` does."""
    url, final = address(source, base_url), folder / source.file
    manifest, is_zip = read_json(folder / "manifest.json", {}), bool(source.pattern)
    pin, ours = manifest.get(source.file, {}), not final.exists()
    due = source.sha256 or pin.get("sha256")
    done = is_zip and is_unpacked(final.with_suffix(""), source, due)
    if done and ours:
        delete_partial(final)
        return "was there"
    found = download(url, final, 1 + is_zip, tries, wait) if ours else final
    facts = verify(found, final, url, source, pin)
    if not is_zip:
        check_table(found, final, url, source)
    elif not done:
        unpack(found, final, url, source, facts["sha256"])
    if pin.get("sha256") != facts["sha256"]:
        write_json(folder / "manifest.json", manifest | {source.file: facts})
    if ours and (keep_zips or not is_zip):
        os.replace(found, final)
    delete_partial(final)
    return "fetched" if ours else "was there" if done or not is_zip else "unpacked"


def fetch(folder, sources=SOURCES, base_url=BASE_URL, keep_zips=False, tries=5, wait=1.0) -> dict:
    """Download the sources to `folder`; returns {name: 'fetched', 'unpacked' or 'was there'}.

    Raises InputError, with file and remedy, for: no network, a refusal, a wrong checksum, a damaged
    or unsafe zip, a full disk, a file or folder that differs from what was downloaded.
    """
    folder, results = resolve(folder), {}
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".fetch.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            terms = folder / "LICENCES.md"
            if not terms.exists() or terms.read_text() != TERMS:
                terms.write_text(TERMS)
            for number, source in enumerate(sources, 1):
                with disk_errors(folder / source.file):
                    done = fetch_one(folder, source, base_url, keep_zips, tries, wait)
                results[source.name] = done
                print(f"[{number}/{len(sources)}] {source.file}: {done}", flush=True)
    return results


def select_sources(names) -> list[Source]:
    """The sources of these names (all if none are given); InputError for an unknown one."""
    known = [source.name for source in SOURCES]
    for name in set(names or []) - set(known):
        remedy = f"use {', '.join(known)}; DIR goes before --only"
        raise InputError("--only", f"there is no source '{name}'", remedy)
    return [source for source in SOURCES if not names or source.name in names]


def main(arguments=None) -> int:
    """Entry point; returns the exit status."""
    options = argparse.ArgumentParser(prog="python -m lesionlib.data.download", description=__doc__)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("folder", nargs="?", default="data/isic", metavar="DIR")
    options.add_argument(
        "--only", nargs="+", metavar="NAME", help="only these (see --list); DIR first"
    )
    options.add_argument("--list", action="store_true", help="list the sources and exit")
    options.add_argument("--base-url", default=BASE_URL, help=f"a mirror, for example {MIRROR}")
    options.add_argument("--keep-zips", action="store_true", help="keep zips after unpacking")
    given = options.parse_args(arguments)
    try:
        sources = select_sources(given.only)
        if given.list:
            for source in sources:
                print(f"{source.name:17} {source.size:>8}  {address(source, given.base_url)}")
            return 0
        print(TERMS)
        fetch(given.folder, sources, given.base_url, given.keep_zips)
        if any(source.name == "attributes" for source in sources):
            attribute_flags(given.folder)
        print(f"Ready in {resolve(given.folder)}; set isic_root to it, with source: isic.")
        return 0
    except InputError as error:
        print(f"download: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("download: interrupted; run this again to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
