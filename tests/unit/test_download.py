"""Downloads against a server on this machine and a made-up hub: resumed, checked, unpacked only inside."""

import hashlib
import io
import json
import os
import shutil
import signal
import stat
import tarfile
import threading
import zipfile
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from click.testing import CliRunner
from huggingface_hub import errors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rarl.cli.download import main
from rarl.data import release
from rarl.data.adapters import silvar_med, slake, vqa_med, vqa_rad
from rarl.data.download import archives, fetching, sources
from rarl.data.download.archives import unpack
from rarl.data.download.fetching import from_web
from rarl.data.download.folder import RECORD, Record, download
from rarl.data.download.sources import ByHand, File, Hub, Published, Web
from rarl.errors import UserError


def zipped(members) -> bytes:
    """A zip of (name or ZipInfo, content) pairs, or of a dictionary of them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in dict(members).items() if isinstance(members, dict) else members:
            archive.writestr(name, data)
    return file.getvalue()


def tarred(members: list[tarfile.TarInfo], data: bytes = b"x", mode="w:gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for info in members:
            info.size = len(data) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def everything(folder: Path) -> set[str]:
    """Every path below a folder, links too, by its name from there."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def jpeg(colour=(9, 9, 9)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(file, "JPEG")
    return file.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Archives


@pytest.fixture
def yard(tmp_path):
    """A folder to unpack in, with something beside it that no archive may touch."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/keep.txt").write_text("mine")
    (tmp_path / "set").mkdir()
    return tmp_path


def untouched(yard: Path, allowed=("set/a.zip", "set/a.tar.gz")):
    there = everything(yard) - set(allowed)
    assert there == {"beside", "beside/keep.txt", "set"}
    assert (yard / "beside/keep.txt").read_text() == "mine"


OUTSIDE = [
    "", ".", "..", "../", "/", "../evil.txt", "../../evil.txt", "ok/../../evil.txt", "ok/../../beside/keep.txt",
    "/etc/evil.txt", "//server/share/evil.txt", ".. /evil.txt", "ok/ ../../evil.txt", "ok/.../evil.txt",
    "..\\evil.txt", "ok\\..\\..\\evil.txt", "\\evil.txt", "\\\\server\\share\\evil.txt", "C:\\evil.txt", "C:evil.txt",
    "c:/evil.txt", "ok/C:/evil.txt", "evil.txt\x00.jpg",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_zip_that_points_outside_is_refused_and_nothing_is_written(yard, name):
    # Written by hand, as `writestr` tidies some of these names up: the good member comes first.
    placeholder = "p" * max(len(name.encode()), 1)
    data = zipped({"good.txt": "x", placeholder: "x"})
    if name:
        data = data.replace(placeholder.encode(), name.encode())
    else:
        data = zipped([("good.txt", "x"), (zipfile.ZipInfo(""), "x")])
    (yard / "set/a.zip").write_bytes(data)
    with pytest.raises(UserError) as error:
        unpack(yard / "set/a.zip", yard / "set/a")
    assert "refused" in error.value.message or "broken" in error.value.message
    assert "to do" in error.value.message
    untouched(yard)


def test_the_table_of_names_reaches_the_archive_as_written():
    """The replacement above must not be undone by the zip module's reader, or the test tests nothing."""
    data = zipped({"pppppppppp": "x"}).replace(b"pppppppppp", b"../evil.tx")
    assert zipfile.ZipFile(io.BytesIO(data)).namelist() == ["../evil.tx"]


@pytest.mark.parametrize("name", [name for name in OUTSIDE if name.strip("./") and "\x00" not in name])
def test_a_tar_that_points_outside_is_refused(yard, name):
    (yard / "set/a.tar.gz").write_bytes(tarred([tarfile.TarInfo("good.txt"), tarfile.TarInfo(name)]))
    with pytest.raises(UserError, match="refused"):
        unpack(yard / "set/a.tar.gz", yard / "set/a")
    untouched(yard)


def link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "../beside/keep.txt"
    return info


TAR_KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
ZIP_MODES = [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]


@pytest.mark.parametrize("kind", TAR_KINDS + ZIP_MODES)
def test_links_and_devices_are_refused(yard, kind):
    if kind in TAR_KINDS:
        archive, data = yard / "set/a.tar.gz", tarred([tarfile.TarInfo("good.txt"), link(kind)])
    else:  # the classic: a link that leads out, then a file that is written through it
        archive, data = yard / "set/a.zip", zipped([(entry("out", kind | 0o777), "../beside"), ("out/keep.txt", "x")])
    archive.write_bytes(data)
    with pytest.raises(UserError, match=r"is a (link|device): refused"):
        unpack(archive, yard / "set/a")
    untouched(yard)


@pytest.mark.parametrize("where", ["a", "a.partial"])
def test_a_link_that_stands_where_the_folder_is_to_come_is_not_followed(yard, where):
    (yard / "set" / where).symlink_to(yard / "beside")
    (yard / "set/a.zip").write_bytes(zipped({"keep.txt": "theirs"}))
    with pytest.raises(UserError):
        unpack(yard / "set/a.zip", yard / "set/a")
    assert everything(yard / "beside") == {"keep.txt"}
    assert (yard / "beside/keep.txt").read_text() == "mine"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("members", [[("a", "1"), ("a", "2")], [("a", "1"), ("a/b", "2")], [("a/b", "1"), ("a", "2")]])
def test_two_members_in_one_place_are_refused(yard, members):
    (yard / "set/a.zip").write_bytes(zipped(members))
    with pytest.raises(UserError):
        unpack(yard / "set/a.zip", yard / "set/a")
    untouched(yard)


def test_bombs_are_refused_before_they_go_off(yard, monkeypatch):
    archive = yard / "set/a.zip"
    archive.write_bytes(zipped({"zeros.txt": bytes(archives.RATIO_FROM + 1)}))
    with pytest.raises(UserError, match="more than 200 times"):
        unpack(archive, yard / "set/a")
    # Many members, each below the limit of one.
    archive.write_bytes(zipped({f"{number}.txt": bytes(4_000_000) for number in range(3)}))
    with pytest.raises(UserError, match="more than 200 times"):
        unpack(archive, yard / "set/a")
    archive.write_bytes(zipped({"a.txt": "gizzard", "b.txt": "antenna"}))
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    with pytest.raises(UserError, match="2 members"):
        unpack(archive, yard / "set/a")
    monkeypatch.undo()
    monkeypatch.setattr(archives, "MAX_BYTES", 13)
    with pytest.raises(UserError, match="unpacks to 14 bytes, more than 13"):
        unpack(archive, yard / "set/a")
    untouched(yard)
    monkeypatch.setattr(archives, "MAX_BYTES", 14)
    assert set(unpack(archive, yard / "set/a").files) == {"a.txt", "b.txt"}


def test_a_full_disk_is_seen_before_the_start(yard, monkeypatch):
    (yard / "set/a.zip").write_bytes(zipped({"a.txt": "gizzard"}))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3))
    with pytest.raises(UserError, match="GB free"):
        unpack(yard / "set/a.zip", yard / "set/a")
    untouched(yard)


def test_what_is_left_in_the_archive_is_counted(yard):
    members = {
        "a/one.json": "[]", "a/qas/train.pkl": "cos\nsystem\n", "a/b.PICKLE": "x", "a/.DS_Store": "x",
        "__MACOSX/a/._one.json": "x",
    }  # fmt: skip
    (yard / "set/a.zip").write_bytes(zipped(members))
    result = unpack(yard / "set/a.zip", yard / "set/a")
    assert everything(yard / "set/a") == {"one.json"}, "a top folder of the same name is not repeated"
    assert result.files == ["one.json"]
    assert result.left_out == Counter(
        {"pickle files, which run code when opened": 2, "files of an operating system": 2}
    )


def test_an_archive_in_an_archive_is_unpacked_beside_itself_once(yard):
    deepest = zipped({"deep.txt": "x"})
    inner = zipped({"inner/a.txt": "gizzard", "inner/deepest.zip": deepest})
    (yard / "set/a.zip").write_bytes(zipped({"read.me": "x", "inner.zip": inner}))
    result = unpack(yard / "set/a.zip", yard / "set/a")
    assert set(result.files) == {"read.me", "inner.zip", "inner/a.txt", "inner/deepest.zip"}
    assert everything(yard / "set/a") == {*result.files, "inner"}
    (yard / "set/a.zip").write_bytes(zipped({"inner.zip": zipped({"p": "x"}).replace(b"p", b"/")}))
    with pytest.raises(UserError):
        unpack(yard / "set/a.zip", yard / "set/b")
    assert not (yard / "set/b").exists()


def test_a_half_unpacked_folder_is_made_anew(yard):
    (yard / "set/a.partial").mkdir()
    (yard / "set/a.partial/old.txt").write_text("half")
    (yard / "set/a.zip").write_bytes(zipped({"new.txt": "x"}))
    unpack(yard / "set/a.zip", yard / "set/a")
    assert everything(yard / "set") == {"a.zip", "a", "a/new.txt"}
    with pytest.raises(UserError, match="move that folder away"):
        unpack(yard / "set/a.zip", yard / "set/a")
    (yard / "set/a/new.txt").unlink()
    unpack(yard / "set/a.zip", yard / "set/a", replace=True)
    assert everything(yard / "set") == {"a.zip", "a", "a/new.txt"}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_tars_are_unpacked(yard, suffix):
    mode = "w:" + {"tar": "", "tgz": "gz"}.get(suffix, suffix.removeprefix("tar."))
    folder = tarfile.TarInfo("a")
    folder.type = tarfile.DIRTYPE
    archive = yard / f"set/a.{suffix}"
    archive.write_bytes(tarred([folder, tarfile.TarInfo("a/x.txt")], b"gizzard", mode))
    assert set(unpack(archive, yard / "set/a").files) == {"x.txt"}
    assert (yard / "set/a/x.txt").read_bytes() == b"gizzard"


name_parts = st.sampled_from(
    ["..", ".", "a", "b.txt", "", "C:", " ", "...", "..\\", "/", "\\", "~", "x.pkl", "\u2025", "keep.txt", "beside"]
)
names = st.lists(name_parts, min_size=1, max_size=5).map("/".join) | st.text(max_size=12)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore:Duplicate name")
@given(st.lists(names, max_size=4), st.booleans(), st.none() | st.integers(0, 400), st.integers(0, 255))
def test_no_archive_writes_outside_its_folder(tmp_path, members, as_tar, damaged, byte):
    """Any names, whole or with a damaged byte: unpacked inside, or one clear error."""
    shutil.rmtree(tmp_path / "yard", ignore_errors=True)
    yard = tmp_path / "yard"
    (yard / "beside").mkdir(parents=True)
    (yard / "beside/keep.txt").write_text("mine")
    (yard / "set").mkdir()
    try:
        if as_tar:
            data = tarred([tarfile.TarInfo(name) for name in members], mode="w")
        else:
            data = zipped([(zipfile.ZipInfo(name), "x") for name in members])
    except (ValueError, UnicodeError):
        return  # a name that cannot be put into an archive
    if damaged is not None:
        data = bytearray(data)
        data[damaged % len(data)] = byte
    archive = yard / ("set/a.tar" if as_tar else "set/a.zip")
    archive.write_bytes(data)
    try:
        result = unpack(archive, yard / "set/a")
    except UserError:
        assert everything(yard) == {"beside", "beside/keep.txt", "set", f"set/{archive.name}"}
    else:
        written = {path for path in (yard / "set/a").rglob("*") if path.is_file()}
        assert written == {yard / "set/a" / name for name in result.files}
        assert everything(yard) - {f"set/a/{name}" for name in everything(yard / "set/a")} == {
            "beside", "beside/keep.txt", "set", f"set/{archive.name}", "set/a",
        }  # fmt: skip
        assert not any(path.is_symlink() for path in yard.rglob("*"))
    assert (yard / "beside/keep.txt").read_text() == "mine"


# Plain files


class Server(ThreadingHTTPServer):
    """Serves `files`, and records each request in `asked` as (path, Range header)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.ranges = self.lengths = self.tags = True
        self.cut_after: int | None = None
        """Bytes after which the server disconnects, each time."""
        self.statuses: list[int] = []
        """Statuses of the next responses, before files are served."""

    def __call__(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def fetched(self) -> list[str]:
        """The files asked for since the last call, each once."""
        names, self.asked = dict.fromkeys(name for name, _ in self.asked), []
        return list(names)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, name = self.server, self.path.strip("/").split("?")[0]
        wanted = self.headers.get("Range")
        server.asked.append((name, wanted))
        self.close_connection = True
        if server.statuses or name not in server.files:
            return self.head(server.statuses.pop(0) if server.statuses else 404, {"Content-Length": 0})
        data, start = server.files[name], 0
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                return self.head(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": 0})
        tag = f'"{sha256(data)[:8]}"'
        if self.headers.get("If-Range", tag) != tag:
            start = 0
        body, headers = data[start:], {"ETag": tag} if server.tags else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        headers |= {"Content-Length": len(body)} if server.lengths else {"Connection": "close"}
        self.head(206 if start else 200, headers)
        with suppress(ConnectionError):  # the client looked at the headers only
            self.wfile.write(body[: server.cut_after])

    def head(self, status: int, headers: dict):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 16384)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


DATA = bytes(range(256)) * 400


def test_a_file_comes_whole_and_leaves_nothing_beside(server, tmp_path):
    server.files["a.bin"] = DATA
    from_web(server("a.bin"), tmp_path / "new/a.bin", sha256(DATA))
    assert (tmp_path / "new/a.bin").read_bytes() == DATA
    assert everything(tmp_path) == {"new", "new/a.bin"}


def test_a_connection_that_keeps_breaking_off_is_resumed_where_it_stopped(server, tmp_path):
    server.files["a.bin"], server.cut_after = DATA, 17_000
    from_web(server("a.bin"), tmp_path / "a.bin", sha256(DATA))
    assert (tmp_path / "a.bin").read_bytes() == DATA
    # The first request looks at the headers.
    assert [wanted for _, wanted in server.asked] == [None, None, *(f"bytes={16384 * k}-" for k in range(1, 7))]


def interrupted(server, path):
    """A download that ends after the first 16 kB."""
    server.files["a.bin"], server.cut_after = DATA, 20_000
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("time.sleep", lambda seconds: os.kill(os.getpid(), signal.SIGINT))
        from_web(server("a.bin"), path)
    server.cut_after = None
    (partial,) = path.parent.glob("a.bin.*")
    assert partial.read_bytes() == DATA[:16384]
    server.asked.clear()
    return partial


def test_an_interrupted_run_is_resumed(server, tmp_path):
    interrupted(server, tmp_path / "a.bin")
    from_web(server("a.bin"), tmp_path / "a.bin", sha256(DATA))
    assert server.asked == [("a.bin", None), ("a.bin", "bytes=16384-")]
    assert (tmp_path / "a.bin").read_bytes() == DATA and everything(tmp_path) == {"a.bin"}


@pytest.mark.parametrize("more", [b"", b"more"])
def test_a_partial_file_that_is_complete_or_too_long_ends_well(server, tmp_path, more):
    interrupted(server, tmp_path / "a.bin").write_bytes(DATA + more)
    from_web(server("a.bin"), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_a_server_without_ranges_or_lengths_sends_it_again(server, tmp_path):
    server.ranges = server.lengths = False
    interrupted_by_hand = tmp_path / "a.bin.00000000.partial"
    interrupted_by_hand.write_bytes(b"half of it")
    server.files["a.bin"] = DATA
    from_web(server("a.bin"), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == DATA and everything(tmp_path) == {"a.bin"}


@pytest.mark.parametrize("tags", [True, False])
def test_a_file_that_changes_between_two_attempts_is_not_pieced_together(server, tmp_path, tags):
    """Without a version from the server only a published hash can tell."""
    server.tags = tags
    interrupted(server, tmp_path / "a.bin")
    server.files["a.bin"] = other = DATA[::-1]
    from_web(server("a.bin"), tmp_path / "a.bin")
    assert ((tmp_path / "a.bin").read_bytes() == other) is tags
    assert everything(tmp_path) == {"a.bin"}


def test_another_file_than_the_published_one_is_not_kept(server, tmp_path):
    server.files["a.bin"] = DATA
    with pytest.raises(UserError, match=f"not {sha256(b'other')}"):
        from_web(server("a.bin"), tmp_path / "a.bin", sha256(b"other"))
    assert everything(tmp_path) == set()


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(server, tmp_path):
    server.files["a.bin"], server.statuses = DATA, [503, 429]
    from_web(server("a.bin"), tmp_path / "a.bin")
    assert len(server.asked) == 4
    server.asked.clear()
    with pytest.raises(UserError, match=r"answers 404[\s\S]*https://page"):
        from_web(server("b.bin"), tmp_path / "b.bin", page="https://page")
    assert len(server.asked) == 1


def test_without_a_network_one_message_says_all(server, tmp_path):
    url = server("a.bin")
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError) as error:
        from_web(url, tmp_path / "a.bin")
    for words in (url, "refused", "resumes the download", "data.root=data/phantom"):
        assert words in error.value.message
    assert everything(tmp_path) == set()


def test_a_server_that_never_sends_anything_is_given_up(server, tmp_path):
    server.files["a.bin"], server.cut_after = DATA, 0
    with pytest.raises(UserError, match="not reached"):
        from_web(server("a.bin"), tmp_path / "a.bin")
    assert len(server.asked) < 10


def test_an_address_with_a_signature_is_not_repeated():
    error = OSError("no route to https://store/file?Signature=abc")
    assert "abc" not in fetching._reason(error)


# Sets


VQA_MED = {
    "Training": {"All_QA_Pairs_train.txt": "synpic1|is the gizzard bent?|yes", "Train_images/synpic1.jpg": jpeg()},
    "Validation": {
        "All_QA_Pairs_val.txt": "synpic2|what is it?|antenna",
        "Val_images/synpic2.jpg": jpeg((9, 0, 0)),
    },
}


@pytest.fixture
def published(server, monkeypatch, tmp_path):
    """VQA-Med and VQA-RAD in their published forms, with made-up rows, on the server."""
    monkeypatch.chdir(tmp_path)
    for part, members in VQA_MED.items():
        top = f"ImageClef-2019-VQA-Med-{part}"
        server.files[f"{top}.zip"] = zipped({f"{top}/{name}": data for name, data in members.items()})
    test = {
        "VQAMed2019Test/VQAMed2019_Test_Questions_w_Ref_Answers.txt": "synpic3|organ|what is it?|gizzard",
        "VQAMed2019Test/VQAMed2019_Test_Images.zip": zipped({"VQAMed2019_Test_Images/synpic3.jpg": jpeg()}),
    }  # fmt: skip
    server.files["VQAMed2019Test.zip"] = zipped(test)
    row = {"qid": 1, "image_name": "synpic1.jpg", "question": "Is it bent?", "answer": "No"}
    rows = [{**row, "phrase_type": "freeform"}, {**row, "qid": 2, "phrase_type": "test_para"}]
    server.files["questions"] = json.dumps(rows).encode()
    server.files["images"] = zipped({"synpic1.jpg": jpeg()})
    names = ("ImageClef-2019-VQA-Med-Training.zip", "ImageClef-2019-VQA-Med-Validation.zip", "VQAMed2019Test.zip")
    forms = {
        "vqa_med": Web("https://page", tuple(File(name, server(name)) for name in names)),
        "vqa_rad": Web(
            "https://page",
            (
                File("VQA_RAD Dataset Public.json", server("questions"), sha256(server.files["questions"])),
                File("VQA_RAD Image Folder.zip", server("images") + "?zip="),
            ),
        ),
    }
    for name, web in forms.items():
        assert [file.name for file in web.files] == [
            file.name for file in sources.SOURCES[name].forms["original"].files
        ], "the names that are published"
        monkeypatch.setitem(sources.SOURCES, name, Published({"original": web}))
    return server


def run(*arguments):
    """The command, as a user gives it."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_vqa_med_comes_as_its_adapter_reads_it(published, tmp_path):
    result = run("vqa_med")
    assert result.exit_code == 0, result.output
    assert "Next: dvc exp run -S data.root=data/raw" in result.output
    assert "rarl download slake" in result.output
    root = tmp_path / "data/raw"
    for split in ("train", "validate", "test"):
        got = release.read(vqa_med, root, split)
        assert (got.rows, len(got.samples)) == (1, 1), (split, got.refused, got.missing_images)
    record = json.loads((root / "vqa_med" / RECORD).read_text())
    assert record["complete"] and record["source"] == "https://page" and record["commit"] is None
    name = "VQAMed2019Test.zip"
    assert record["files"][name] == {"size": len(published.files[name]), "sha256": sha256(published.files[name])}
    kept = record["archives"]["ImageClef-2019-VQA-Med-Training.zip"]["files"]
    assert kept["ImageClef-2019-VQA-Med-Training/Train_images/synpic1.jpg"]["sha256"] == sha256(jpeg())


def test_vqa_rad_comes_as_its_adapter_reads_it(published, tmp_path):
    assert run("vqa_rad").exit_code == 0
    for split in ("train", "test"):
        got = release.read(vqa_rad, tmp_path / "data/raw", split)
        assert (got.rows, len(got.samples)) == (1, 1), (split, got.refused, got.missing_images)


def test_a_second_run_asks_nobody_and_checks_every_file(published, tmp_path):
    run("vqa_med")
    published.asked.clear()
    assert "every file is there and unchanged" in run("vqa_med").output
    assert published.asked == []
    folder = tmp_path / "data/raw/vqa_med"
    # An archive is not needed any more, once it is unpacked.
    (folder / "VQAMed2019Test.zip").unlink()
    assert "every file is there and unchanged" in run("vqa_med").output
    # A picture that is gone comes back from its archive.
    gone = folder / "ImageClef-2019-VQA-Med-Training/Train_images/synpic1.jpg"
    gone.unlink()
    result = run("vqa_med")
    assert "missing: ImageClef-2019-VQA-Med-Training/Train_images/synpic1.jpg" in result.output
    assert gone.read_bytes() == jpeg() and published.asked == []
    # One that changed is named, and kept.
    gone.write_bytes(b"painted over")
    result = run("vqa_med")
    assert result.exit_code == 1 and "synpic1.jpg" in result.output and "changed since" in result.output
    assert gone.read_bytes() == b"painted over"
    # An archive that is gone with what it held is fetched, and it alone.
    gone.unlink()
    (folder / "ImageClef-2019-VQA-Med-Training.zip").unlink()
    (folder / "VQAMed2019Test.zip").write_bytes(published.files["VQAMed2019Test.zip"])
    assert run("vqa_med").exit_code == 0
    assert published.fetched() == ["ImageClef-2019-VQA-Med-Training.zip"]


def test_a_run_that_was_stopped_between_two_archives_goes_on(published, tmp_path):
    whole = published.files.pop("VQAMed2019Test.zip")
    result = run("vqa_med")
    assert result.exit_code == 1 and "answers 404" in result.output
    published.files["VQAMed2019Test.zip"] = whole
    published.asked.clear()
    assert run("vqa_med").exit_code == 0
    assert published.fetched() == ["VQAMed2019Test.zip"]


def test_the_published_archive_itself_may_point_outside(published, tmp_path):
    """Issue 3's bar: a zip that points outside ends in one clear error, and nothing is outside."""
    name = "ImageClef-2019-VQA-Med-Validation.zip"
    published.files[name] = zipped({"Val_images/a.jpg": jpeg(), "pppppppppppppp": "theirs"}).replace(
        b"pppppppppppppp", b"../../evil.txt"
    )
    before = everything(tmp_path)
    result = run("vqa_med")
    assert result.exit_code == 1
    assert name in result.output and "'../../evil.txt'" in result.output and "refused" in result.output
    assert "Traceback" not in result.output
    new = everything(tmp_path) - before
    assert all(
        path in ("data", "data/raw", "data/raw/vqa_med") or path.startswith("data/raw/vqa_med/") for path in new
    )
    assert not any("evil" in path for path in new) and "data/raw/vqa_med/ImageClef-2019-VQA-Med-Validation" not in new
    assert not json.loads((tmp_path / "data/raw/vqa_med" / RECORD).read_text())["complete"]


def test_update_fetches_what_has_no_checksum_anew(published, tmp_path):
    run("vqa_rad")
    published.files["images"] = zipped({"synpic1.jpg": jpeg((0, 0, 99))})
    published.asked.clear()
    assert run("vqa_rad", "--update").exit_code == 0
    assert published.fetched() == ["images"]
    folder = tmp_path / "data/raw/vqa_rad"
    assert (folder / "VQA_RAD Image Folder/synpic1.jpg").read_bytes() == jpeg((0, 0, 99))
    assert "unchanged" in run("vqa_rad").output


def test_a_record_that_is_no_record_and_a_form_that_is_not_there(published, tmp_path):
    folder = tmp_path / "data/raw/vqa_rad"
    folder.mkdir(parents=True)
    (folder / RECORD).write_text("{")
    assert "delete it and run the same command again" in run("vqa_rad").output
    assert "leave out --form" in run("vqa_rad", "--form", "hub", "--to", tmp_path / "other").output


def test_a_record_that_points_outside_is_refused(published, tmp_path):
    run("vqa_rad")
    path = tmp_path / "data/raw/vqa_rad" / RECORD
    record = json.loads(path.read_text())
    record["files"]["../../../mine.txt"] = {"size": 1, "sha256": "0"}
    path.write_text(json.dumps(record))
    (tmp_path / "mine.txt").write_text("x")
    result = run("vqa_rad", "--update")
    assert result.exit_code == 1 and "leads out of the folder" in result.output
    assert (tmp_path / "mine.txt").exists()


def test_a_folder_that_cannot_be_written_to_is_one_message(published, tmp_path):
    (tmp_path / "data").write_text("a file")
    result = run("vqa_rad")
    assert result.exit_code == 1 and "to do" in result.output


def test_a_set_by_hand_says_what_to_put_where_and_takes_it_from_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = run("path_vqa", "--form", "original")
    assert result.exit_code == 1
    for words in ("github.com/UCSD-AI4H/PathVQA", "pvqa_test.json", "data/raw/path_vqa"):
        assert words in result.output
    folder = tmp_path / "data/raw/path_vqa"
    folder.mkdir(parents=True)
    (folder / "pvqa_test.json").write_text("[]")
    (folder / "images.zip").write_bytes(zipped({"images/test/test_1.jpg": jpeg(), "qas/test.pkl": "x"}))
    result = run("path_vqa", "--form", "original")
    assert result.exit_code == 0 and "1 pickle files" in result.output
    assert (folder / "images/test/test_1.jpg").is_file()
    assert "unchanged" in run("path_vqa").output, "the form is remembered"
    assert isinstance(sources.SOURCES["path_vqa"].forms["original"], ByHand)


# The hub


class FakeHub:
    """Repositories as commit -> files; stands in for the client's two calls."""

    def __init__(self, commits: dict[str, dict[str, bytes]]):
        self.commits = commits
        self.fetched: list[tuple[str, str]] = []
        self.raises: Exception | None = None
        self.stop_after: int | None = None

    def dataset_info(self, repository, *, revision=None, files_metadata=False):
        if self.raises:
            raise self.raises
        commit = revision or list(self.commits)[-1]
        siblings = [
            SimpleNamespace(
                rfilename=name,
                size=len(data),
                lfs=SimpleNamespace(sha256=sha256(data)) if name.endswith((".zip", ".parquet")) else None,
                blob_id=hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
            )
            for name, data in self.commits[commit].items()
        ]
        return SimpleNamespace(sha=commit, siblings=siblings)

    def snapshot_download(self, repository, *, repo_type, revision, local_dir, allow_patterns):
        assert repo_type == "dataset"
        wanted = list(huggingface_hub.utils.filter_repo_objects(self.commits[revision], allow_patterns=allow_patterns))
        for name in wanted[: self.stop_after]:
            data, path = self.commits[revision][name], Path(local_dir) / name
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                self.fetched.append((revision[:1], name))
        if self.stop_after is not None:
            raise KeyboardInterrupt
        note = Path(local_dir) / ".cache/huggingface/trees/x.json"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text("{}")


def slake_files(answer="Yes") -> dict[str, bytes]:
    row = {
        "img_name": "xmlab900/source.jpg", "question": "Is the gizzard bent?", "answer": answer, "q_lang": "en",
        "modality": "CT", "content_type": "Abnormality", "qid": 1,
    }  # fmt: skip
    questions = json.dumps([row]).encode()
    images = zipped({"imgs/xmlab900/source.jpg": jpeg(), "__MACOSX/imgs/._x": "x"})
    return {
        "README.md": b"not wanted", "train.json": questions, "validation.json": questions, "test.json": questions,
        "imgs.zip": images,
    }  # fmt: skip


A, B = "a" * 40, "b" * 40


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """SLAKE's repository with made-up rows at two commits; A is pinned, B is the newest."""
    monkeypatch.chdir(tmp_path)
    fake = FakeHub({A: slake_files(), B: slake_files("No")})
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    files = sources.SOURCES["slake"].forms["original"].files
    pinned = Hub("BoKelvin/SLAKE", A, files, {"train.json": sha256(fake.commits[A]["train.json"])})
    monkeypatch.setitem(sources.SOURCES, "slake", Published({"original": pinned, "hub": pinned}))
    unpinned = Hub("Hanhpt23/Silvar-Med", None, sources.SOURCES["silvar_med"].forms["original"].files)
    without = sources.SOURCES["silvar_med"].without
    monkeypatch.setitem(sources.SOURCES, "silvar_med", Published({"original": unpinned}, without))
    return fake


def commit_of(name="slake"):
    return json.loads((Path("data/raw") / name / RECORD).read_text())["commit"]


def test_slake_comes_at_the_pinned_commit_as_its_adapter_reads_it(hub, tmp_path):
    result = run("slake")
    assert result.exit_code == 0, result.output
    assert f"at {A} (pinned by this project)" in result.output
    assert {name for _, name in hub.fetched} == {"train.json", "validation.json", "test.json", "imgs.zip"}
    for split in ("train", "validate", "test"):
        got = release.read(slake, tmp_path / "data/raw", split)
        assert [sample.answers for sample in got.samples] == [["Yes"]]
    assert commit_of() == A
    assert "unchanged" in run("slake", "--form", "hub").output, "SLAKE's forms are one"


def test_a_newer_commit_is_taken_on_purpose_only_and_kept_then(hub, tmp_path):
    run("slake")
    (tmp_path / "data/raw/slake/test.json").unlink()
    assert run("slake").exit_code == 0
    assert commit_of() == A
    result = run("slake", "--update")
    assert result.exit_code == 0 and f"tested with {A}" in result.output
    assert commit_of() == B
    (tmp_path / "data/raw/slake/test.json").unlink()
    assert run("slake").exit_code == 0
    assert commit_of() == B
    assert b'"No"' in (tmp_path / "data/raw/slake/test.json").read_bytes()


def test_files_that_a_newer_commit_lacks_are_removed(hub, monkeypatch, tmp_path):
    monkeypatch.setitem(sources.SOURCES, "slake", Published({"hub": Hub("x/y", A, ("data/*.parquet",))}))
    hub.commits = {A: {"data/train-1.parquet": b"one"}, B: {"data/train-2.parquet": b"two"}}
    run("slake")
    run("slake", "--update")
    assert [path.name for path in (tmp_path / "data/raw/slake/data").iterdir()] == ["train-2.parquet"]


def test_where_nothing_is_pinned_the_first_download_pins_it(hub, tmp_path):
    hub.commits = {A: {"train.json": b"[]", "speech.wav": b"x"}}
    result = run("silvar_med")
    assert f"at {A} (recorded for later runs)" in result.output
    assert {name for _, name in hub.fetched} == {"train.json"}, "neither pictures nor speech"
    hub.commits[B] = {"train.json": b"[1]"}
    (tmp_path / "data/raw/silvar_med/train.json").unlink()
    assert run("silvar_med").exit_code == 0
    assert commit_of("silvar_med") == A
    assert not list(silvar_med.explanations(tmp_path / "data/raw")), "notes of the download are no explanations"


def test_a_run_that_was_stopped_keeps_to_its_commit(hub, tmp_path):
    hub.commits = {A: {"one.json": b"[]", "two.json": b"[]"}}
    hub.stop_after = 1
    result = run("silvar_med")
    assert result.exit_code == 130 and "again to resume" in result.output
    hub.stop_after, hub.commits[B] = None, {"one.json": b"[1]", "two.json": b"[1]"}
    assert run("silvar_med").exit_code == 0
    assert hub.fetched == [("a", "one.json"), ("a", "two.json")]
    assert commit_of("silvar_med") == A


@pytest.mark.parametrize("name", ["test.json", "imgs.zip"])
def test_a_file_that_is_not_what_the_hub_says_is_not_kept(hub, monkeypatch, name):
    fetched = hub.snapshot_download

    def spoilt(*args, local_dir, **more):
        fetched(*args, local_dir=local_dir, **more)
        (Path(local_dir) / name).write_bytes(hub.commits[A][name][::-1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", spoilt)
    result = run("slake")
    found = "SHA-256" if name == "imgs.zip" else "git hash"  # the hub has a SHA-256 of large files only
    assert result.exit_code == 1 and f"{name}\n  found:    {found}" in result.output
    assert "deleted" in result.output and not Path("data/raw/slake", name).exists()
    assert not json.loads(Path("data/raw/slake", RECORD).read_text())["complete"]


def test_a_checksum_of_the_project_counts_besides_the_hubs(hub, monkeypatch):
    wrong = Hub("BoKelvin/SLAKE", A, ("train.json",), {"train.json": sha256(b"other")})
    monkeypatch.setitem(sources.SOURCES, "slake", Published({"original": wrong}))
    assert f"not {sha256(b'other')}" in run("slake").output


def test_a_file_of_the_users_own_is_not_overwritten(hub):
    Path("data/raw/slake").mkdir(parents=True)
    Path("data/raw/slake/train.json").write_text("mine")
    result = run("slake")
    assert result.exit_code == 1 and "move it away" in result.output
    assert Path("data/raw/slake/train.json").read_text() == "mine"


def test_a_hub_that_names_a_file_outside_is_refused(hub, monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "slake", Published({"hub": Hub("x/y", A, ("*.json",))}))
    hub.commits = {A: {"../../mine.json": b"theirs"}}
    Path("data").mkdir()
    Path("data/mine.json").write_text("mine")
    assert "leads out of the folder" in run("slake").output
    assert Path("data/mine.json").read_text() == "mine"


def test_a_repository_without_the_wanted_files_says_so(hub):
    hub.commits = {A: {"speech.wav": b"x"}}
    result = run("silvar_med")
    assert result.exit_code == 1 and "*.json" in result.output and "by hand" in result.output


def answer(kind, status=403):
    import httpx2

    request = httpx2.Request(
        "GET", "https://huggingface.co/api/datasets/x", headers={"Authorization": "Bearer hf_secret"}
    )
    return kind("hf_secret said no", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.GatedRepoError, ("accept them on that page", "hf auth login", "by hand")),
        (errors.RepositoryNotFoundError, ("moved, private or taken down", "by hand")),
        (errors.RevisionNotFoundError, ("the pinned commit no longer exists", "--update")),
        (errors.HfHubHTTPError, ("resumes the download",)),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_way_round_it(hub, kind, words):
    hub.raises = answer(kind)
    result = run("silvar_med")
    assert result.exit_code == 1
    for word in ("https://huggingface.co/datasets/Hanhpt23/Silvar-Med", *words):
        assert word in " ".join(result.output.split()), word


@pytest.mark.parametrize("offline", ["1", "0"])
def test_an_offline_machine_gets_one_message(hub, monkeypatch, offline):
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    hub.raises = errors.OfflineModeIsEnabled("no") if offline == "1" else ConnectionError("[Errno 101] unreachable")
    result = run("slake")
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert ("HF_HUB_OFFLINE is set" in result.output) == (offline == "1")
    for words in ("https://huggingface.co/datasets/BoKelvin/SLAKE", "data.root=data/phantom"):
        assert words in result.output
    assert everything(Path()) == set(), "nothing is left behind"


def test_a_whole_set_is_checked_without_a_network(hub):
    run("slake")
    hub.raises = ConnectionError("no")
    assert "unchanged" in run("slake").output


def test_a_second_form_is_not_mixed_into_the_folder(hub, monkeypatch):
    forms = {"hub": Hub("x/y", A, ("test.json",)), "original": Hub("x/y", A, ("train.json",))}
    monkeypatch.setitem(sources.SOURCES, "cv_bench", Published(forms))
    assert run("cv_bench").exit_code == 0
    result = run("cv_bench", "--form", "original")
    assert result.exit_code == 1 and "give another folder with --to" in result.output
    assert run("cv_bench", "--form", "original", "--to", "elsewhere").exit_code == 0


# The table


def test_every_source_is_pinned_or_said_to_be_pinned_later():
    for name, published in sources.SOURCES.items():
        for form, source in published.forms.items():
            assert str(source).startswith("https://"), (name, form)
            assert form in ("original", "hub")
            if isinstance(source, Hub):
                assert source.commit is None or (len(source.commit) == 40 and int(source.commit, 16))
                for path, digest in source.sha256.items():
                    assert len(digest) == 64 and int(digest, 16)
                    assert list(huggingface_hub.utils.filter_repo_objects([path], allow_patterns=list(source.files)))
            if isinstance(source, Web):
                assert all(file.url.startswith("https://") for file in source.files)


def test_the_list_names_every_set_with_its_licence():
    output = run("--list").output
    assert all(name in output for name in sources.SOURCES)
    assert "CC BY 4.0" in output and "pinned at the first download" in output and "by hand" in output
    assert output == run().output, "without a set, the list is shown"


def test_the_pinned_question_files_are_those_at_hand(real_data):
    for folder, name, form in (("slake", "slake", "original"), ("vqa-rad", "vqa_rad", "original")):
        source = sources.SOURCES[name].forms[form]
        pinned = source.sha256 if isinstance(source, Hub) else {file.name: file.sha256 for file in source.files}
        for path, digest in pinned.items():
            there = real_data / folder / path.replace("validation.json", "validate.json")
            if there.is_file():
                assert sha256(there.read_bytes()) == digest, there


def test_the_download_is_no_stage(repository):
    assert "download" not in (repository / "dvc.yaml").read_text(encoding="utf-8")


def test_the_token_is_never_taken_from_the_command_line_or_written():
    options = {option for parameter in main.params for option in parameter.opts}
    assert not any("token" in option for option in options)
    assert "token" not in Record.model_fields


def test_download_is_also_a_function(hub, tmp_path):
    assert download("slake", tmp_path / "raw").complete
    assert os.path.isfile(tmp_path / "raw/slake" / RECORD)
