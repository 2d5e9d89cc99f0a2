"""DICOM files to images. All files are built here, with made-up pixels and people."""

import io
import struct
import sys
from types import ModuleType

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from rarl.data import dicom
from rarl.data.dicom import to_png

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
PERSON = {
    "PatientName": "Gizzard^Wilhelmina",
    "PatientID": "ZQ-4711-XK",
    "PatientBirthDate": "19310217",
    "InstitutionName": "Antenna Infirmary",
    "ReferringPhysicianName": "Sprocket^Ottokar",
    "StudyDescription": "gearbox of Wilhelmina",
    "StudyDate": "20010203",
    "AccessionNumber": "ACC998877",
}


def make(path, pixels=RAMP, interpretation="MONOCHROME2", syntax=ExplicitVRLittleEndian, **elements):
    """Write a DICOM file; elements with the value None are left out."""
    pixels = np.asarray(pixels)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["gizzard"])
    bits = pixels.dtype.itemsize * 8
    values = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": data.file_meta.MediaStorageSOPInstanceUID,
        "Rows": pixels.shape[0], "Columns": pixels.shape[1], "PhotometricInterpretation": interpretation,
        "SamplesPerPixel": 3 if pixels.ndim == 3 else 1,
        "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"), "PixelData": pixels.tobytes(),
        **({"PlanarConfiguration": 0} if pixels.ndim == 3 else {}), **PERSON, **elements,
    }  # fmt: skip
    for name, value in values.items():
        if value is not None:
            setattr(data, name, value)
    if syntax.is_encapsulated:
        data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)
    return path


def shown(path) -> np.ndarray:
    data = to_png(path)
    assert data == to_png(path)
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG" and not image.info
    return np.asarray(image).astype(int)


def table(name, entries, first, depth, values):
    """A sequence with one lookup table, as VOI and modality LUTs are."""
    item = Dataset()
    item.LUTDescriptor = [entries, first, depth]
    item.LUTData = values
    item["LUTData"].VR = "US"
    return {name: [item]}


def test_a_viewer_gets_the_range_and_the_windows_of_more_than_8_bits(tmp_path):
    pixels = (RAMP.astype(np.int16) - 100) * 8
    path = make(tmp_path / "a.dcm", pixels, WindowCenter=["40", "-600"], WindowWidth=["400", "1500"],
                PixelPaddingValue=-800)  # fmt: skip
    found = dicom.values_of(path)
    assert (found.low, found.high) == (-792, 1240), "without the padding"
    assert found.windows == [(40, 400), (-600, 1500), (224.5, 2033)]
    assert (np.asarray(dicom.to_image(path, found.windows[0])) == shown(path)).all()
    whole = np.asarray(dicom.to_image(path, found.windows[-1])).astype(int)
    assert (whole.ravel()[0], whole.ravel()[1], whole.ravel()[-1]) == (0, 0, 255) and whole.ravel()[128] == 128
    table_first = make(tmp_path / "b.dcm", RAMP.astype(np.uint16), **table("VOILUTSequence", 256, 0, 8, [7] * 256))
    assert len(np.unique(shown(table_first))) == 1, "by its table"
    assert len(np.unique(np.asarray(dicom.to_image(table_first, (128, 256))))) == 256, "by the window instead"
    negative = make(tmp_path / "c.dcm", RAMP.astype(np.uint16), "MONOCHROME1")
    assert np.asarray(dicom.to_image(negative, (128, 256))).ravel()[[0, -1]].tolist() == [255, 0]
    for eight in (make(tmp_path / "d.dcm"), make(tmp_path / "e.dcm", np.stack([RAMP] * 3, -1), "RGB")):
        assert dicom.values_of(eight) is None
    with pytest.raises(ValueError, match="not a DICOM file"):
        dicom.values_of(__file__)


def refusal(path) -> str:
    with pytest.raises(ValueError) as error:
        to_png(path)
    said = str(error.value)
    assert "\n" not in said and not any(value in said for value in PERSON.values())
    return said


def test_without_a_window_the_range_of_the_values_is_shown(tmp_path):
    found = shown(make(tmp_path / "a", RAMP // 2 + 30))
    assert np.abs(found - (RAMP // 2).astype(int) * 255 / 127).max() <= 0.5
    assert (shown(make(tmp_path / "b", np.full((4, 4), 9, np.uint8))) == 0).all()


def test_monochrome1_is_inverted(tmp_path):
    assert (shown(make(tmp_path / "a", interpretation="MONOCHROME1")) == 255 - RAMP.astype(int)).all()  # fmt: skip


def test_window_follows_the_standard(tmp_path):
    """PS3.3, C.11.2.1.2.1, computed here by its formula."""
    center, width = 100, 50
    expected = ((RAMP - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1) * 255
    found = shown(make(tmp_path / "a", WindowCenter=center, WindowWidth=width))
    assert np.abs(found - expected).max() <= 0.5
    assert (found[RAMP < 75] == 0).all() and (found[RAMP > 125] == 255).all()


def test_window_is_kept_where_the_image_does_not_fill_it(tmp_path):
    faint = make(tmp_path / "a", RAMP // 8 + 100, WindowCenter=128, WindowWidth=256)
    assert shown(faint).min() >= 99 and shown(faint).max() <= 132


def test_first_window_of_several(tmp_path):
    one = make(tmp_path / "a", WindowCenter=100, WindowWidth=50)
    two = make(tmp_path / "b", WindowCenter=[100, 30], WindowWidth=[50, 9])
    assert (shown(one) == shown(two)).all()


@pytest.mark.parametrize("function, middle", [("LINEAR_EXACT", 128), ("SIGMOID", 128)])
def test_other_window_functions(tmp_path, function, middle):
    found = shown(make(tmp_path / "a", WindowCenter=100, WindowWidth=50, VOILUTFunction=function))
    assert abs(found[RAMP == 100][0] - middle) <= 1 and found.min() <= 1 and found.max() >= 254
    assert (np.diff(found.ravel()) >= 0).all()


def test_signed_ct_with_rescale_and_window(tmp_path):
    hounsfield = np.array([[-1024, -160, 40, 240, 3000]], np.int16)
    stored = make(tmp_path / "a", (hounsfield - 24) // 2, RescaleSlope=2, RescaleIntercept=24,
                  WindowCenter=40, WindowWidth=400, BitsStored=12, HighBit=11)  # fmt: skip
    assert shown(stored).tolist() == [[0, 0, 128, 255, 255]]


def test_negative_slope_turns_the_values_round(tmp_path):
    found = shown(make(tmp_path / "a", RescaleSlope=-1, RescaleIntercept=255))
    assert (found == 255 - RAMP.astype(int)).all()
    windowed = make(tmp_path / "b", RescaleSlope=-1, RescaleIntercept=255, WindowCenter=128, WindowWidth=256)
    assert np.abs(shown(windowed) - (255 - RAMP.astype(int))).max() <= 1


@pytest.mark.parametrize(
    "elements", [{"WindowCenter": 100}, {"WindowCenter": "", "WindowWidth": ""}, {"RescaleSlope": 0}]
)
def test_half_a_window_is_none(tmp_path, elements):
    assert (shown(make(tmp_path / "a", **elements)) == RAMP).all()


def test_voi_lut_with_more_entries_than_its_values_have_bits(tmp_path):
    """1,024 entries of 8 bits: an index of 8 bits would wrap around."""
    steps = np.arange(0, 1024, 4, dtype=np.uint16).reshape(16, 16)
    lut = table("VOILUTSequence", 1024, 0, 8, [i // 4 for i in range(1024)])
    assert (shown(make(tmp_path / "a", steps, **lut)) == RAMP).all()


def test_modality_lut(tmp_path):
    lut = table("ModalityLUTSequence", 256, 0, 16, [65535 - 257 * i for i in range(256)])
    assert (shown(make(tmp_path / "a", **lut)) == 255 - RAMP.astype(int)).all()


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_left_out_of_the_range(tmp_path, interpretation):
    pixels = RAMP.astype(np.int16)
    pixels[0, :4] = -2000
    found = shown(make(tmp_path / "a", pixels, interpretation, PixelPaddingValue=-2000))
    assert (found[0, :4] == 0).all()
    inside = found.ravel()[4:]
    assert {inside[0], inside[-1]} == {0, 255}
    ranged = make(tmp_path / "b", pixels, PixelPaddingValue=-2100, PixelPaddingRangeLimit=-1900)
    assert (shown(ranged)[0, :4] == 0).all() and shown(ranged)[0, 4] == 0


def test_enhanced_single_frame_takes_window_and_rescale_from_its_groups(tmp_path):
    shared, frame, rescale, window = (Dataset() for _ in range(4))
    rescale.RescaleSlope, rescale.RescaleIntercept = 1, -100
    window.WindowCenter, window.WindowWidth = 0, 50
    shared.PixelValueTransformationSequence = [rescale]
    frame.FrameVOILUTSequence = [window]
    enhanced = make(tmp_path / "a", NumberOfFrames=1, SharedFunctionalGroupsSequence=[shared],
                    PerFrameFunctionalGroupsSequence=[frame])  # fmt: skip
    classic = make(tmp_path / "b", RescaleSlope=1, RescaleIntercept=-100, WindowCenter=0, WindowWidth=50)  # fmt: skip
    assert (shown(enhanced) == shown(classic)).all()


COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 60, 30]]] * 4, np.uint8)


def test_rgb_keeps_its_colours(tmp_path):
    assert (shown(make(tmp_path / "a", COLOURS, "RGB")) == COLOURS).all()
    planes = make(tmp_path / "b", COLOURS, "RGB", PlanarConfiguration=1,
                  PixelData=COLOURS.transpose(2, 0, 1).tobytes())  # fmt: skip
    assert (shown(planes) == COLOURS).all()
    deep = make(tmp_path / "c", COLOURS.astype(np.uint16) << 4, "RGB", BitsStored=12, HighBit=11)
    assert (shown(deep) == COLOURS).all()


def test_ybr_becomes_rgb(tmp_path):
    from pydicom.pixels import convert_color_space

    ybr = convert_color_space(COLOURS, "RGB", "YBR_FULL")
    assert np.abs(shown(make(tmp_path / "a", ybr, "YBR_FULL")) - COLOURS).max() <= 2


@pytest.mark.parametrize("depth", [8, 16])
def test_palette(tmp_path, depth):
    scale = 1 if depth == 8 else 257
    lut = [np.array(values, f"<u{depth // 8}") * scale for values in ([255, 0, 9, 0], [0, 255, 9, 0], [0, 0, 9, 255])]
    elements = {}
    for name, values in zip(("Red", "Green", "Blue"), lut):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, depth]
        elements[f"{name}PaletteColorLookupTableData"] = values.astype(f"<u{depth // 8}").tobytes()
    pixels = np.array([[0, 1], [2, 3]], np.uint8)
    expected = [[[255, 0, 0], [0, 255, 0]], [[9, 9, 9], [0, 0, 255]]]
    assert shown(make(tmp_path / "a", pixels, "PALETTE COLOR", **elements)).tolist() == expected


def test_compressed_as_run_lengths_and_as_jpeg(tmp_path):
    run_lengths = pydicom.dcmread(make(tmp_path / "a"))
    run_lengths.compress(RLELossless)
    run_lengths.save_as(tmp_path / "a")
    assert (shown(tmp_path / "a") == RAMP).all()
    jpeg = io.BytesIO()
    Image.fromarray(RAMP).save(jpeg, "JPEG", quality=95)
    path = make(tmp_path / "b", syntax=JPEGBaseline8Bit, PixelData=encapsulate([jpeg.getvalue()]))
    assert np.abs(shown(path) - RAMP).max() <= 6


def test_unsupported_compression_names_it_and_the_remedy(tmp_path):
    path = make(tmp_path / "a", syntax=JPEGLSLossless, PixelData=encapsulate([b"\xff\xd8gizzard"]))
    said = refusal(path)
    assert "JPEG-LS Lossless" in said and "pylibjpeg" in said


@pytest.fixture
def pylibjpeg(monkeypatch):
    """Install a stand-in for pylibjpeg, which decodes every JPEG and JPEG-LS image to a ramp."""
    plugin = ModuleType("ramp")
    plugin.is_available, plugin.DECODER_DEPENDENCIES = lambda uid: True, {JPEGBaseline8Bit: (), JPEGLSLossless: ()}
    plugin.decode = lambda source, runner: bytearray(range(runner.frame_length(unit="bytes")))
    monkeypatch.setitem(sys.modules, "ramp", plugin)
    decoders = [get_decoder(syntax) for syntax in (JPEGBaseline8Bit, JPEGLSLossless)]
    for decoder in decoders:
        decoder.remove_plugin("pylibjpeg")
        decoder.add_plugin("pylibjpeg", ("ramp", "decode"))
    yield
    for decoder in decoders:
        decoder.remove_plugin("pylibjpeg")
        decoder.add_plugin("pylibjpeg", ("pydicom.pixels.decoders.pylibjpeg", "_decode_frame"))


def test_an_optional_decoder_reads_more_files_and_changes_none(tmp_path, request):
    jpeg = io.BytesIO()
    Image.fromarray(COLOURS).save(jpeg, "JPEG")
    colour = make(tmp_path / "a", COLOURS, "YBR_FULL_422", JPEGBaseline8Bit, PixelData=encapsulate([jpeg.getvalue()]))
    other = make(tmp_path / "b", syntax=JPEGLSLossless, PixelData=encapsulate([b"\xff\xd8gizzard"]))
    without = to_png(colour)
    if not get_decoder(JPEGLSLossless).available_plugins:
        assert "`pip install --upgrade pylibjpeg pylibjpeg-libjpeg`" in refusal(other)
    request.getfixturevalue("pylibjpeg")
    assert to_png(colour) == without and (shown(other) == RAMP).all()


def test_nothing_is_to_be_installed_where_the_file_is_at_fault(tmp_path, pylibjpeg, monkeypatch):
    path = make(tmp_path / "a", syntax=JPEGLSLossless, PixelData=encapsulate([b"\xff\xd8gizzard"]))
    monkeypatch.setattr(dicom, "pixel_array", lambda *_, **more: (_ for _ in ()).throw(RuntimeError("no image")))
    assert refusal(path).startswith("its compression does not decode here: export it uncompressed (transfer syntax ")


def test_unknown_transfer_syntax(tmp_path):
    path = make(tmp_path / "a")
    known, unknown = str(ExplicitVRLittleEndian).encode(), b"1.2.840.10008.9.9.9"
    path.write_bytes(path.read_bytes().replace(known, unknown))
    assert "transfer syntax unknown" in refusal(path)


def test_multi_frame_is_refused(tmp_path):
    said = refusal(make(tmp_path / "a", NumberOfFrames=12, PixelData=RAMP.tobytes() * 12))
    assert said == "multi-frame: export the frame that the question is about (12 frames)"


def test_no_pixel_data(tmp_path):
    assert "no pixel data" in refusal(make(tmp_path / "a", PixelData=None))


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    assert "more than 100,000,000" in refusal(make(tmp_path / "a", Rows=60000, Columns=60000))


def test_unknown_photometric_interpretation(tmp_path):
    assert "photometric interpretation" in refusal(make(tmp_path / "a", interpretation="HSV"))


@pytest.mark.parametrize("elements", [{"WindowCenter": 5, "WindowWidth": 0}, {"BitsAllocated": 7}, {"Rows": None}])
def test_nonsense_in_the_header(tmp_path, elements):
    assert "damaged" in refusal(make(tmp_path / "a", **elements))


def test_every_truncation_is_refused_or_the_whole_image(tmp_path):
    whole = make(tmp_path / "a").read_bytes()
    said = set()
    for length in range(0, len(whole), 7):
        (tmp_path / "b").write_bytes(whole[:length])
        said.add(refusal(tmp_path / "b"))
    assert len(said) <= 4 and any("damaged" in reason for reason in said)


def test_no_dicom_and_no_file(tmp_path):
    (tmp_path / "a").write_bytes(b"gizzard" * 99)
    assert "not a DICOM file" in refusal(tmp_path / "a")
    assert "cannot be read" in refusal(tmp_path / "b")


def test_nothing_of_the_header_is_said_even_by_warnings(tmp_path, recwarn, caplog, capfd):
    """Broken values of identifying elements make pydicom warn, and its warnings quote them."""
    path = make(tmp_path / "a")
    data = path.read_bytes()
    for old, new in ((b"19310217", b"Wilhelmi"), (b"ZQ-4711-XK", b"\xff\xfe-4711-XK")):
        assert old in data
        data = data.replace(old, new)
    path.write_bytes(data)
    assert (shown(path) == RAMP).all()
    heard = "".join([str(list(recwarn)), caplog.text, *capfd.readouterr()])
    assert "Wilhelmi" not in heard and "4711" not in heard


def test_no_identifying_element_is_read(tmp_path, monkeypatch):
    read = []
    original = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **more: read.append(original(*args, **more)) or read[0])
    to_png(make(tmp_path / "a"))
    assert not {element.keyword for element in read[0]} & set(PERSON)
    assert {element.keyword for element in read[0]} - {"SpecificCharacterSet"} <= set(dicom.ELEMENTS)  # fmt: skip


def test_random_damage_never_raises_anything_else(tmp_path):
    whole = bytearray(make(tmp_path / "a", WindowCenter=100, WindowWidth=50).read_bytes())
    random = np.random.default_rng(3)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in random.integers(132, len(whole), 4):
            damaged[place] = random.integers(256)
        (tmp_path / "b").write_bytes(damaged)
        try:
            to_png(tmp_path / "b")
        except ValueError as error:
            assert "\n" not in str(error)
            assert not any(value in str(error) for value in PERSON.values())


def test_length_that_points_beyond_the_file(tmp_path):
    whole = make(tmp_path / "a").read_bytes()
    place = whole.index(b"\xe0\x7f\x10\x00") + 8
    length = struct.pack("<I", 0xFFFFFF00)
    (tmp_path / "b").write_bytes(whole[:place] + length + whole[place + 4 :])
    assert (shown(tmp_path / "b") == RAMP).all()
