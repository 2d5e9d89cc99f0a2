"""Images are opened in one way: by models, by pages, and by `rarl ask`. All are drawn here."""

import base64
import io
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from test_dicom import make

import rarl
from rarl.cli import ask
from rarl.data.dicom import to_png
from rarl.data.release import Images, decode
from rarl.errors import UserError
from rarl.images import open_rgb, thumbnail
from rarl.inference import asking
from rarl.rating.page import image_html
from rarl.records import image_file, write_json
from rarl.sharing import model_folder

ORIENTATION = 0x0112
#: EXIF orientation -> what a camera that writes it has done to the image.
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def two_patches() -> Image.Image:
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:8, :10] = (250, 60, 20)
    pixels[16:, 30:] = (40, 90, 240)
    return Image.fromarray(pixels)


def save_turned(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    two_patches().transpose(TURNED[orientation]).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", TURNED)
def test_an_image_is_upright_wherever_it_is_shown(tmp_path, orientation):
    two_patches().save(tmp_path / "upright.png")
    path = save_turned(tmp_path / "turned.png", orientation)
    assert (np.asarray(open_rgb(path)) == np.asarray(two_patches())).all()
    assert thumbnail(path) == thumbnail(tmp_path / "upright.png")
    assert image_html(path) == image_html(tmp_path / "upright.png")
    seen, upright = (decode((tmp_path / f"{name}.png").read_bytes()) for name in ("turned", "upright"))  # fmt: skip
    assert (seen.dhash, seen.phash) == (upright.dhash, upright.phash)


def test_a_thumbnail_of_a_large_jpeg_is_upright_too(tmp_path):
    large = two_patches().resize((800, 480))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    large.transpose(TURNED[6]).save(tmp_path / "turned.jpg", exif=exif)
    small = Image.open(io.BytesIO(base64.b64decode(thumbnail(tmp_path / "turned.jpg").split(",")[1])))  # fmt: skip
    assert small.size == (176, 106) and small.getpixel((10, 10))[0] > 200


def test_images_are_opened_in_one_place():
    """`rarl.images` turns an image upright; `decode`, in `rarl.data.release`, hashes it upright."""
    root = Path(rarl.__file__).parent
    opened = [path for path in root.rglob("*.py") if re.search(r"Image\.open\(|imread\(", path.read_text("utf-8"))]
    assert {path.relative_to(root).as_posix() for path in opened} == {"images.py", "data/release.py"}


def saved(form: str, frames: int) -> bytes:
    first, *others = [two_patches().rotate(60 * k) for k in range(frames)]
    buffer = io.BytesIO()
    first.save(buffer, form, save_all=True, append_images=others)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_several_frames_are_refused_as_in_dicom(tmp_path, form):
    assert decode(saved(form, 1)).fault is None
    make(tmp_path / "film.dcm", NumberOfFrames=3, PixelData=bytes(768))
    with pytest.raises(ValueError) as error:
        to_png(tmp_path / "film.dcm")
    assert decode(saved(form, 3)).fault == str(error.value)
    assert str(error.value) == "multi-frame: export the frame that the question is about (3 frames)"


def test_previews_in_a_phones_jpeg_are_no_frames():
    data = saved("MPO", 2)
    assert Image.open(io.BytesIO(data)).n_frames == 2 and decode(data).fault is None


def test_damaged_exif_is_passed_over(tmp_path):
    two_patches().save(tmp_path / "a.png", exif=b"Exif\0\0gizzard gizzard")
    assert (np.asarray(open_rgb(tmp_path / "a.png")) == np.asarray(two_patches())).all()


def claims(path: Path, width: int, height: int) -> None:
    """A small PNG whose header claims another size."""
    data = bytearray(path.read_bytes())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of good and bad images, below `raw/` as data.root."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "raw/own"
    folder.mkdir(parents=True)
    two_patches().save(folder / "good.png")
    two_patches().convert("CMYK").save(folder / "cmyk.jpg")
    save_turned(folder / "turned.png", 6)
    make(folder / "IM000010")
    make(folder / "scan.dcm")
    Image.fromarray(np.full((30, 30), 40_000, np.uint16)).save(folder / "deep.png")
    Image.new("L", (3000, 10)).save(folder / "strip.png")
    two_patches().save(folder / "huge.png")
    claims(folder / "huge.png", 30_000, 30_000)
    make(folder / "frames.dcm", NumberOfFrames=2, PixelData=bytes(512))
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:60])
    (folder / "notes.png").write_text("no image")
    (folder / "empty.png").touch()
    return folder


@pytest.mark.parametrize("name", ["good.png", "cmyk.jpg", "turned.png", "IM000010", "scan.dcm"])
def test_ask_shows_the_model_what_the_pipeline_shows_it(own, name):
    images = Images("raw", Path("data/pictures"))
    record, sha256, fault = images.admit(name, Path("raw/own"))
    assert sha256 and fault is None
    shown, asked = (open_rgb(file) for file in (image_file("raw", record), asking.read_image(own / name)))  # fmt: skip
    assert shown.size == asked.size and shown.tobytes() == asked.tobytes()


@pytest.mark.parametrize("name, reason", [
    ("deep.png", "more than 8 bits a pixel"), ("strip.png", "longer strip than 200:1"),
    ("huge.png", "more than 100,000,000 pixels"), ("frames.dcm", "multi-frame"), ("cut.png", "does not decode"),
    ("notes.png", "no image format"), ("empty.png", "no image format"),
])  # fmt: skip
def test_ask_refuses_what_the_pipeline_refuses_and_in_its_words(own, name, reason):
    _, sha256, fault = Images("raw").admit(name, Path("raw/own"))
    assert sha256 is None and reason in fault
    with pytest.raises(UserError) as error:
        asking.read_image(own / name)
    assert fault in error.value.message and f"--image {own / name}" in error.value.message


def test_ask_tells_a_folder_from_a_missing_file(own):
    for path, found in ((own, "a folder"), (own / "gone.png", "no such file")):
        with pytest.raises(UserError, match=found):
            asking.read_image(path)


@pytest.mark.parametrize("question, found", [("", "no text"), (" \n", "no text"), ("a\udcff?", "not UTF-8")])
def test_ask_refuses_a_question_without_text(repository, monkeypatch, question, found):
    monkeypatch.chdir(repository)
    args = ["--model", "base", "--image", "x.png", "--question", question]
    result = CliRunner().invoke(ask.main, args)
    assert result.exit_code == 1 and found in result.stderr and "to do:" in result.stderr


def test_ask_names_the_base_of_pointers_copies_and_merged_weights(tmp_path):
    def made(pointer=None, card=None):
        if pointer:
            write_json(tmp_path / "base.json", pointer)
        else:
            (tmp_path / "base.json").unlink(missing_ok=True)
            (tmp_path / "README.md").write_text(card, encoding="utf-8")
        return model_folder.base_of(tmp_path)

    hub = {"source": "Qwen/Qwen2-VL-2B-Instruct", "revision": "895c3a4", "sha256": None}
    assert made(hub) == ("Qwen/Qwen2-VL-2B-Instruct", "895c3a4")
    assert made({"source": "data/base", "revision": None, "sha256": "0"}) == ("data/base", None)
    assert made(card='---\nbase_model: "data/base"\n---\n# merged\n') == ("data/base", None)
    assert made(card="# a folder of somebody's\n") == (tmp_path.as_posix(), None)
