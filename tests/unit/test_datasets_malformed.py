"""Malformed files: each ends in a UserError or in a counted refusal, never in another exception."""

import io
import json
import pickle
import tempfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_datasets_adapters import rad_row, slake_row
from test_datasets_hub import png, sat_row

from rarl.answers.matching import matches
from rarl.data import release
from rarl.data.adapters import cv_bench, path_vqa, sat, silvar_med, slake, vqa_med, vqa_rad
from rarl.data.release import Images, decode
from rarl.errors import UserError
from rarl.records import Sample

few = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])

PATH_ITEM = {
    "img_id": "test_1",
    "sentf": {"pvqa": ["what is present?", "is it round ?"]},
    "labelf": {"pvqa": [{"gears": 1}, {"yes": 1}]},
}
CV_ROW = {
    "idx": 1, "task": "Count", "question": "How many?", "choices": ["two", "3"], "answer": "(B)",
    "prompt": "How many? Select.\n(A) two\n(B) 3", "filename": "img/a.png",
}  # fmt: skip
EXPORTED = {
    "source": "cvbench", "index_origin": 3, "question": "Which?\n(A) crop\n(B) cog", "answer": "(B)",
    "img_paths": ["./dataset/CV-Bench/img/a.png"], "category_origin": "Depth",
}  # fmt: skip
#: adapter, its file, a row, whether the file has a row a line, and the image that the row names.
JSON_RELEASES = {
    "slake": (slake, "slake/test.json", slake_row(1), False, "slake/imgs/xmlab1/source.jpg"),
    "vqa_rad": (
        vqa_rad,
        "vqa_rad/VQA_RAD Dataset Public.json",
        rad_row(1, "no"),
        False,
        "vqa_rad/VQA_RAD Image Folder/synpic1.jpg",
    ),
    "path_vqa": (path_vqa, "path_vqa/pvqa_test.json", PATH_ITEM, False, "path_vqa/images/test/test_1.jpg"),
    "cv_bench": (cv_bench, "cv_bench/test_2d.jsonl", CV_ROW, True, "cv_bench/img/a.png"),
    "cv_bench_export": (cv_bench, "cv_bench/rows.json", EXPORTED, False, "cv_bench/img/a.png"),
}
HUB_ROW = {"image": {"bytes": png(1), "path": "1.png"}, "question": "Bent?", "answer": "yes"}
PARQUET_RELEASES = {
    "vqa_rad": (vqa_rad, "vqa_rad/test.parquet", HUB_ROW),
    "path_vqa": (path_vqa, "path_vqa/test.parquet", HUB_ROW),
    "vqa_med": (vqa_med, "vqa_med/test.parquet", {**HUB_ROW, "category": "organ"}),
    "slake": (slake, "slake/test.parquet", {**HUB_ROW, "q_lang": "en"}),
    "cv_bench": (cv_bench, "cv_bench/test_2d.parquet", {**CV_ROW, "image": HUB_ROW["image"]}),
    "sat": (sat, "sat/SAT_test.parquet", sat_row(1)),
}

texts = st.text(max_size=12) | st.sampled_from(
    ["", " ", "\x00", "\ud800", "../../x.jpg", "/x.jpg", "x" * 300, "?", "(A)", "()", "1e999", "no"]
)
numbers = st.integers() | st.floats()
scalars = st.none() | st.booleans() | numbers | texts
junk = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


def put(root, name, data):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def read(adapter, root):
    """Read the test split: a UserError, or every row accounted for and every sample sound."""
    try:
        found = release.read(adapter, root, "test", images=Images(root))
    except UserError as error:
        assert "to do:" in error.message
        return None
    assert len(found.samples) + len(found.refused) + len(found.missing_images) == found.rows
    assert all(name and reason for name, reason in found.refused)
    assert len({sample.id for sample in found.samples}) == len(found.samples)
    for sample in found.samples:
        assert Sample.model_validate_json(sample.model_dump_json()) == sample
        for answer in sample.answers:
            assert matches(answer, sample.answers, sample.kind, sample.choices), sample
    return found


def as_bytes(rows, lines):
    return ("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)).encode()


@pytest.mark.parametrize("name", JSON_RELEASES)
@few
@given(data=st.data())
def test_wrong_types_and_missing_keys(name, data):
    adapter, file, row, lines, image = JSON_RELEASES[name]
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(row)), junk, max_size=2))
    without = data.draw(st.sets(st.sampled_from(sorted(row)), max_size=1))
    bad = {key: value for key, value in {**row, **changed}.items() if key not in without}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        put(root, image, png(1))
        put(root, file, as_bytes([row, bad], lines))
        found = read(adapter, root)
        if found is not None:
            # What is wrong with one row takes nothing from another.
            assert len(found.samples) >= (2 if name == "path_vqa" else 1)


@few
@given(value=junk)
@example(value=[])
@example(value={"pvqa": 5})
@example(value={"pvqa": [["what?"], None, {"a": 1}, "what?"]})
def test_path_vqas_nested_lists(value):
    items = [{**PATH_ITEM, "sentf": value}, {**PATH_ITEM, "labelf": value}]
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), "path_vqa/images/test/test_1.jpg", png(1))
        put(Path(folder), "path_vqa/pvqa_test.json", as_bytes(items, False))
        read(path_vqa, Path(folder))


@pytest.mark.parametrize("name", JSON_RELEASES)
@few
@given(data=st.data())
def test_truncated_and_overwritten_json(name, data):
    adapter, file, row, lines, image = JSON_RELEASES[name]
    whole = as_bytes([row, row], lines)
    cut = data.draw(st.integers(0, len(whole)))
    noise = data.draw(st.binary(max_size=8))
    rest = whole[cut + len(noise) :] if data.draw(st.booleans()) else b""
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), image, png(1))
        put(Path(folder), file, whole[:cut] + noise + rest)
        read(adapter, Path(folder))


@pytest.mark.parametrize(
    "text", ["", "null", "5", '"rows"', "{}", "[1, 2]", "[" * 100_000, '[{"qid": ' + "9" * 5000 + "}]"]
)
def test_json_that_is_no_list_of_rows(tmp_path, text):
    put(tmp_path, "slake/test.json", text.encode())
    found = read(slake, tmp_path)
    assert found is None or found.rows == 0


@pytest.mark.parametrize("key", ["qid", "question", "answer", "img_name", "content_type"])
def test_brackets_nested_deep_in_a_field(tmp_path, key):
    text = json.dumps([{**slake_row(1), key: "HERE"}]).replace('"HERE"', "[" * 900 + "]" * 900)
    put(tmp_path, "slake/test.json", text.encode())
    found = read(slake, tmp_path)
    assert found is None or found.rows == 1


def test_a_pickle_in_the_place_of_a_file_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path(tmp_path / "sprung").touch, ()

    trap = pickle.dumps([Trap()])
    for adapter, file, *_ in [*JSON_RELEASES.values(), *PARQUET_RELEASES.values()]:
        with tempfile.TemporaryDirectory() as folder:
            put(Path(folder), file, trap)
            with pytest.raises(UserError, match="to do:"):
                release.read(adapter, folder, "test")
    put(tmp_path, "vqa_rad/VQA_RAD Dataset Public.json", as_bytes([rad_row(1, "no")], False))
    put(tmp_path, "vqa_rad/VQA_RAD Image Folder/synpic1.jpg", trap)
    found = read(vqa_rad, tmp_path)
    assert len(found.refused) == 1 and not (tmp_path / "sprung").exists()


@few
@given(
    st.lists(
        st.binary(max_size=30)
        | st.text("|#()ab \t\u00a0\r\x00", max_size=20).map(str.encode)
        | st.sampled_from([b"synpic1|organ|what?|a#b", b"synpic1|organ|what?|#()", b"synpic1|||", b"\xff\xfe"]),
        max_size=6,
    )
)
def test_vqa_med_text(lines):
    good = b"synpic1|organ|what is it?|crop (old)"
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), "vqa_med/VQAMed2019_Test_Images/synpic1.jpg", png(1))
        put(Path(folder), f"vqa_med/{vqa_med.FILES['test']}", b"\n".join([good, *lines]))
        found = read(vqa_med, Path(folder))
        assert found is None or found.samples[0].answers == ["crop (old)", "crop old", "crop"]


#: A column of each type that a field is not meant to have.
COLUMNS = {
    "numbers": pa.array([1, None]),
    "booleans": pa.array([True, None]),
    "lists": pa.array([["a", None], []]),
    "structs": pa.array([{"bytes": b"x", "path": None}, None]),
    "deep": pa.array([[{"a": [1]}], None]),
    "nulls": pa.nulls(2),
    "bytes": pa.array([b"", b"\xff"]),
    "texts": pa.array(["", "\x00"]),
    "not utf-8": pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"\xff\xfea")),
    "dates": pa.array([2**60, 1], pa.timestamp("us")),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("name", PARQUET_RELEASES)
def test_parquet_columns_of_another_type(tmp_path, name, kind):
    adapter, file, row = PARQUET_RELEASES[name]
    for column in row:
        table = pa.Table.from_pylist([row, row])
        table = table.set_column(table.column_names.index(column), column, COLUMNS[kind])
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)
        found = read(adapter, tmp_path)
        assert found is None or found.rows + found.notes["other_language_rows"] == 2


@pytest.mark.parametrize("name", PARQUET_RELEASES)
@few
@given(data=st.data())
def test_truncated_parquet(name, data):
    adapter, file, row = PARQUET_RELEASES[name]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row, row]), buffer)
    whole = buffer.getvalue()
    cut = data.draw(st.integers(0, len(whole) - 1))
    # Cut off, or a stretch in the middle gone, with the end (where parquet has its index) still there.
    rest = whole[data.draw(st.integers(cut + 1, len(whole))) :]
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), file, whole[:cut] + rest)
        read(adapter, Path(folder))


@few
@given(data=st.data())
def test_truncated_arrow(data):
    sink = io.BytesIO()
    table = pa.Table.from_pylist([HUB_ROW, HUB_ROW])
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    whole = sink.getvalue()
    cut = data.draw(st.integers(0, len(whole)))
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), "vqa_rad/test/data-00000-of-00001.arrow", whole[:cut])
        put(Path(folder), "vqa_rad/test/state.json", data.draw(st.binary(max_size=8)))
        read(vqa_rad, Path(folder))


@few
@given(data=st.data())
def test_explanations(data):
    row = {"img_name": "xmlab1_2.jpg", "question": "Is the gizzard healthy?", "answer": "Even."}
    line = {"image": "xmlab1", "question": "Is the gizzard healthy?", "reasoning": "Even."}
    lines = data.draw(st.booleans())
    base = line if lines else row
    bad = {**base, **data.draw(st.dictionaries(st.sampled_from(sorted(base)), junk, max_size=2))}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        put(root, "slake/imgs/xmlab1/source.jpg", png(1))
        for split in ("train", "validate", "test"):
            put(root, f"slake/{split}.json", as_bytes([slake_row(1)], False))
        put(root, f"silvar_med/a.json{'l' * lines}", as_bytes([bad], lines))
        try:
            releases = silvar_med.training(root, None, Images(root))
        except UserError as error:
            assert "to do:" in error.message
            return
        notes = releases["train"].notes
        assert notes["explanations_read"] == 1
        for found in releases.values():
            for sample in found.samples:
                assert Sample.model_validate_json(sample.model_dump_json()) == sample


def encoded(mode, form, size=(12, 9)):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, form)
    return buffer.getvalue()


IMAGES = [
    encoded("RGB", "PNG"),
    encoded("CMYK", "JPEG"),
    encoded("L", "JPEG"),
    encoded("1", "PNG"),
    encoded("P", "GIF"),
    encoded("RGBA", "WEBP"),
    encoded("RGB", "BMP"),
    encoded("I;16", "PNG"),
    encoded("F", "TIFF"),
    encoded("CMYK", "TIFF"),
    encoded("L", "PNG", (1, 1)),
    encoded("L", "PNG", (20_000, 10)),
]


@few
@given(st.sampled_from(IMAGES), st.data())
def test_damaged_images(whole, data):
    cut = data.draw(st.integers(0, len(whole)))
    noise = data.draw(st.binary(max_size=6))
    rest = whole[cut + len(noise) :] if data.draw(st.booleans()) else b""
    seen = decode(whole[:cut] + noise + rest)
    assert (seen.fault is None) == bool(seen.dhash and seen.phash)
    assert seen.fault is None or "0x" not in seen.fault


@few
@given(*[st.sampled_from([0, 1, 13, 60_000, 2**31, 2**32 - 1])] * 2, st.sampled_from(["PNG", "GIF", "BMP"]))
@example(20_000, 20_000, "PNG")
@example(20_000, 20_000, "GIF")
def test_a_header_that_claims_another_size(width, height, form):
    data = bytearray(encoded("P", form))
    place, size, order = {"PNG": (16, 4, "big"), "GIF": (6, 2, "little"), "BMP": (18, 4, "little")}[form]
    for at, value in ((place, width), (place + size, height)):
        data[at : at + size] = (value % 256**size).to_bytes(size, order)
    if form == "PNG":
        data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    seen = decode(bytes(data))
    assert seen.fault or seen.width * seen.height <= release.MAX_PIXELS


def test_what_is_too_large_is_refused_before_it_is_decoded():
    for mode in ("L", "1"):
        seen = decode(encoded(mode, "PNG", (20_000, 10)))
        assert "longer strip" in seen.fault
    assert decode(encoded("1", "PNG", (20_000, 200))).fault is None
