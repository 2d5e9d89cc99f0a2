"""Write the phantoms as releases, with the files, keys and quirks of the real ones.

Every row's ground truth goes into one file beside them. Its questions are spelled as the adapters return them (white
space folded).
"""

import hashlib
import io
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import numpy as np
from PIL import Image

from rarl.errors import UserError
from rarl.params import Phantom
from rarl.phantom import medical, microscopy
from rarl.phantom.medical import Finding, Scene, Style
from rarl.phantom.questions import (
    Asked,
    abnormality_questions,
    diseases_asked,
    named,
    other_questions,
    reasoning,
    yes_no,
)
from rarl.phantom.words import DISEASES, MODALITIES
from rarl.processes.forks import cores, in_forks
from rarl.records import atomic_file, write_json

#: SLAKE's Abnormality rows in English: images and rows by modality, as in the real splits.
SPLITS = {
    "train": {"xray": (149, 432), "mri": (85, 162), "ct": (70, 122)},
    "validate": {"xray": (30, 86), "mri": (18, 29), "ct": (13, 17)},
    "test": {"xray": (36, 97), "mri": (18, 32), "ct": (13, 21)},
}
ABNORMAL_SHARE = 0.55
QUESTIONS_PER_IMAGE = 5
#: Development and test rows of SAT.
OTHER_SAT_ROWS = 132
OTHER_ROWS = {"train": 30, "validate": 10}
CHINESE_ROWS = 6
LOCATIONS = {"xray": "Lung", "mri": "Brain", "ct": "Abdomen"}


@dataclass
class Written:
    """The written files.

    Attributes:
        truth: A line for each question.
        counts: (release, what, count) for the console.
        declared: release -> split -> name of a count -> value, for the audit to compare with.
    """

    truth: list[dict] = field(default_factory=list)
    counts: list[tuple[str, str, int]] = field(default_factory=list)
    declared: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    def declare(self, release: str, split: str, **counts: int) -> None:
        """Record the counts of a split."""
        self.declared.setdefault(release, {})[split] = counts

    def tell(self, sha256: str, question: str, modality: str, findings: list[Finding], expect: dict) -> None:
        """Record the truth of a question."""
        self.truth.append(
            {
                "image_sha256": sha256,
                "question": question,
                "modality": modality,
                "findings": [asdict(finding) for finding in findings],
                "expect": expect,
            }
        )


def make_phantom(params: Phantom, output: Path, truth: Path) -> None:
    """Draw the releases into `output` and write the ground truth, each atomically, and print the counts."""
    start = time.monotonic()
    click.echo(f"phantom: generating {params.image_size} px images (seeds {params.seed} and {params.test_seed}) ...")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        written = write_releases(partial, params)
        with atomic_file(truth) as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in written.truth)
        shutil.rmtree(output, ignore_errors=True)
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for release, what, count in written.counts:
        click.echo(f"  {release:<11} {what:<28} {count:>5}")
    click.echo(f"phantom: {len(written.truth)} questions with known truth, {time.monotonic() - start:.1f} s")


def write_releases(root: Path, params: Phantom) -> Written:
    """Draw all releases and write them below `root`, on all cores.

    Raises:
        UserError: `benchmark_rows` exceeds the number of questions about the SLAKE test images.
    """
    writers = {
        "slake": _write_slake, "vqa_rad": _write_vqa_rad, "vqa_med": _write_vqa_med, "path_vqa": _write_path_vqa,
        "cv_bench": _write_cv_bench, "sat": _write_sat,
    }  # fmt: skip

    def write(name, advance) -> Written:
        written = Written()
        writers[name](root / name, params, written)
        return written

    # The last takes nearly half of the time, so it starts first.
    parts = in_forks(write, [*reversed(writers)], min(cores(1), len(writers)))
    written = Written()
    for part in reversed(parts):
        written.truth += part.truth
        written.counts += part.counts
        written.declared |= part.declared
    write_json(root / "declared.json", written.declared)
    return written


def save_image(path: Path, image: Image.Image) -> str:
    """Write a JPEG or PNG and return the SHA-256 of its bytes."""
    buffer = io.BytesIO()
    if path.suffix == ".jpg":
        image.save(buffer, "JPEG", quality=95)
    else:
        image.save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _scenes(rng: np.random.Generator, modality: str, count: int, style: Style) -> list[Scene]:
    """Draw `count` phantoms of one modality, a fixed share of them abnormal, in random order."""
    abnormal = np.zeros(count, dtype=bool)
    abnormal[: round(ABNORMAL_SHARE * count)] = True
    rng.shuffle(abnormal)
    scenes = []
    for ill in abnormal:
        findings = medical.choose_findings(rng, modality) if ill else []
        scenes.append(medical.draw(rng, modality, findings, style))
    return scenes


def _rgb(scene: Scene) -> Image.Image:
    return Image.fromarray(scene.pixels).convert("RGB")


# SLAKE and Silvar-Med -------------------------------------------------------------------------------


def _write_slake(folder: Path, params: Phantom, written: Written) -> None:
    style = Style(params.image_size, params.image_size)
    image_number, row_number = 0, 0
    for split_number, (split, plan) in enumerate(SPLITS.items()):
        seed = params.test_seed if split == "test" else params.seed
        rng = np.random.default_rng([seed, split_number])
        rows, explanations, images = [], [], []
        for modality, (images_wanted, rows_wanted) in plan.items():
            scenes = _scenes(rng, modality, images_wanted, style)
            for scene, count in zip(scenes, _share_out(rng, rows_wanted, scenes)):
                name = f"xmlab{image_number}/source.jpg"
                sha256 = save_image(folder / "imgs" / name, _rgb(scene))
                image = (image_number, name, sha256, scene)
                images.append(image)
                image_number += 1
                for k, asked in enumerate(abnormality_questions(rng, scene, int(count))):
                    rows.append(_slake_row(row_number, image, "Abnormality", asked))
                    row_number += 1
                    written.tell(sha256, asked.text, scene.modality, scene.findings, asked.expect)
                    copy = f"xmlab{image[0]}_{k}.jpg" if k else f"xmlab{image[0]}.jpg"
                    text = reasoning(rng, scene, asked)
                    explanations.append({"img_name": copy, "question": asked.text, "answer": text})
        written.counts.append(("slake", f"{split}: images", len(images)))
        written.counts.append(("slake", f"{split}: Abnormality rows", len(rows)))

        pool = [(image, *other) for image in images for other in other_questions(image[3])]
        wanted = OTHER_ROWS.get(split, params.benchmark_rows)
        if wanted > len(pool):
            raise UserError(
                "params.yaml: phantom.benchmark_rows", str(wanted), f"at most {len(pool)}", "take a smaller number"
            )
        for index in sorted(rng.permutation(len(pool))[:wanted]):
            image, content_type, asked = pool[index]
            rows.append(_slake_row(row_number, image, content_type, asked))
            row_number += 1
            written.tell(image[2], asked.text, image[3].modality, image[3].findings, asked.expect)
        written.declare("slake", split, rows=len(rows), images=len(images))
        for image in images[:CHINESE_ROWS]:
            asked = Asked("图中是否有异常？", "有" if image[3].findings else "没有", {}, "image")
            rows.append(_slake_row(row_number, image, "Abnormality", asked, "zh"))
            row_number += 1
        write_json(folder / f"{split}.json", rows)

        kept = explanations
        if split == "train":
            chosen = rng.permutation(len(explanations))[: round(params.annotated_share * len(explanations))]
            kept = [explanations[index] for index in sorted(chosen)]
        write_json(folder.parent / "silvar_med" / f"{split}_abnormal.json", kept)
        written.declare(
            "silvar_med",
            split,
            rows=len(explanations),
            images=len(images),
            **{modality: rows_wanted for modality, (_, rows_wanted) in plan.items()},
            annotated=len(kept),
        )
        written.counts.append(("silvar_med", f"{split}: explanations", len(kept)))


def _share_out(rng: np.random.Generator, rows: int, scenes: list[Scene]) -> np.ndarray:
    """Give each image 1 to 5 of the rows at random; abnormal ones get more questions, as in SLAKE."""
    shares = np.ones(len(scenes), dtype=int)
    chances = np.array([1.4 if scene.findings else 1.0 for scene in scenes])
    while shares.sum() < rows:
        image = rng.choice(len(scenes), p=chances / chances.sum())
        if shares[image] < QUESTIONS_PER_IMAGE:
            shares[image] += 1
    return shares


def _slake_row(number: int, image: tuple, content_type: str, asked: Asked, language: str = "en") -> dict:
    image_number, name, _, scene = image
    return {
        "img_id": image_number,
        "img_name": name,
        "question": asked.text,
        "answer": asked.answer,
        "q_lang": language,
        "location": LOCATIONS[scene.modality],
        "modality": "X-Ray" if scene.modality == "xray" else MODALITIES[scene.modality],
        "answer_type": "CLOSED" if asked.closed or language == "zh" else "OPEN",
        "base_type": "vqa",
        "content_type": content_type,
        "triple": ["vhead", "_", "_"],
        "qid": number,
    }


# VQA-RAD --------------------------------------------------------------------------------------------

RAD_ORGANS = {"xray": "CHEST", "mri": "HEAD", "ct": "ABD"}
RAD_TRAIN_ROWS = 10


def _write_vqa_rad(folder: Path, params: Phantom, written: Written) -> None:
    """Write images of other machines: another size and contrast, more noise, smaller anatomy."""
    rng = np.random.default_rng([params.test_seed, 10])
    rows: list[dict] = []
    total = params.benchmark_rows + RAD_TRAIN_ROWS
    image = 0
    while len(rows) < total:
        modality = ("xray", "mri", "xray", "ct")[image % 4]
        scene = _scene(rng, modality, Style(160, 140, rng.uniform(0.75, 0.9), 0.04, 1.08, 0.05, 0.95))
        name = f"synpic{50000 + 7 * image}.jpg"
        sha256 = save_image(folder / "VQA_RAD Image Folder" / name, _rgb(scene))
        pool = _rad_questions(rng, scene)
        for index in rng.permutation(len(pool))[: min(3, total - len(rows))]:
            question_type, asked = pool[index]
            test = len(rows) < params.benchmark_rows
            rows.append(_rad_row(len(rows), name, scene, question_type, asked, test))
            written.tell(sha256, asked.text, scene.modality, scene.findings, asked.expect)
        image += 1
    write_json(folder / "VQA_RAD Dataset Public.json", rows)
    named = {
        split: [row["image_name"] for row in rows if row["phrase_type"].startswith("test") is test]
        for split, test in (("train", False), ("test", True))
    }
    both = set(named["train"]) & set(named["test"])
    for split, names in named.items():
        written.declare("vqa_rad", split, rows=len(names), images=len(set(names)))
    written.declared["vqa_rad"]["test"] |= {
        "images_also_in_train": len(both),
        "rows_with_training_image": sum(name in both for name in named["test"]),
    }
    written.counts.append(("vqa_rad", "images", image))
    written.counts.append(("vqa_rad", "test rows", params.benchmark_rows))


def _scene(rng: np.random.Generator, modality: str, style: Style) -> Scene:
    ill = rng.random() < ABNORMAL_SHARE
    return medical.draw(rng, modality, medical.choose_findings(rng, modality) if ill else [], style)


def _rad_row(number: int, name: str, scene: Scene, question_type: str, asked: Asked, test: bool) -> dict:
    answer: str | int = asked.answer
    if "yes" in asked.expect:  # the real file spells yes and no in several cases
        answer = (asked.answer, asked.answer.lower())[number % 2]
    elif asked.family == "count":
        answer = int(asked.answer)
    return {
        "qid": number,
        "phrase_type": "test_freeform" if test and number % 3 else "test_para" if test else "freeform",
        "qid_linked_id": f"00000000-0000-4000-8000-{number:012d}",
        "image_case_url": "NULL",
        "image_name": name,
        "image_organ": RAD_ORGANS[scene.modality],
        "evaluation": "not evaluated",
        "question": asked.text,
        "question_rephrase": "NULL",
        "question_relation": "NULL",
        "question_frame": "NULL",
        "question_type": question_type,
        "answer": answer,
        "answer_type": ("CLOSED " if number % 50 == 0 else "CLOSED") if asked.closed else "OPEN",
    }


def _rad_questions(rng: np.random.Generator, scene: Scene) -> list[tuple[str, Asked]]:
    findings, organs = scene.findings, scene.organs
    abnormal = bool(findings)
    present = rng.random() < 0.5 and abnormal
    asked_disease = findings[0].name if present else str(rng.choice(DISEASES[scene.modality]))
    seen = asked_disease in named(findings)
    modality = MODALITIES[scene.modality]
    questions = [
        ("PRES", yes_no(f"Is there {_a(asked_disease)} in this image?", seen, "patient")),
        ("ABN", yes_no("Is this a normal image?", not abnormal, "image")),
        ("ABN", yes_no("Are there any abnormal findings?", abnormal, "image")),
        ("ABN", diseases_asked("What disease is seen in this image?", findings, "open")),
        (
            "MODALITY",
            Asked("What type of image is this?", modality, {"any_of": [modality, modality.replace("-", " ")]}, "open"),
        ),
    ]
    if scene.modality == "xray":
        large = "Cardiomegaly" in named(findings)
        questions.append(("SIZE", yes_no("Is the heart enlarged?", large, "organ")))
    spots = [finding for finding in findings if finding.name in ("Nodule", "Mass", "Brain Tumor")]
    if scene.modality != "ct":
        counted = {"any_of": [str(len(spots)), microscopy.WORDS[len(spots)]]}
        questions.append(("COUNT", Asked("How many bright round spots are seen?", str(len(spots)), counted, "count")))
    sides = {finding.side for finding in findings}
    if len(sides) == 1 and "" not in sides:
        side = sides.pop()
        text = "Which side of the image is abnormal, left or right?"
        questions.append(("POS", Asked(text, side.capitalize(), {"any_of": [side]}, "choice")))
    if len(findings) == 1 and findings[0].level and findings[0].organ in ("lung", "brain"):
        level, side, organ = findings[0].level, findings[0].side, findings[0].organ
        places = [f"{level} {side} {organ}", f"{level} {side}", f"{side} {level} {organ}", f"{side} {level}"]
        questions.append(("POS", Asked("Where is the abnormality?", places[0], {"any_of": places}, "place")))
    questions.append(("ORGAN", yes_no(f"Is the {organs[0]} shown in this image?", True, "organ")))
    return questions


def _a(disease: str) -> str:
    return (
        disease.lower()
        if disease in ("Pneumonia", "Effusion", "Cardiomegaly", "Brain Edema")
        else f"a {disease.lower()}"
    )


# VQA-Med --------------------------------------------------------------------------------------------

MED_PLANES = {"xray": "frontal", "mri": "axial", "ct": "axial"}
MED_CATEGORIES = ("modality", "plane", "organ", "abnormality")


def _write_vqa_med(folder: Path, params: Phantom, written: Written) -> None:
    """Write one question per image, the four categories one after another, as in the real test file."""
    rng = np.random.default_rng([params.test_seed, 20])
    lines = []
    for number in range(params.benchmark_rows):
        category = MED_CATEGORIES[number * 4 // params.benchmark_rows]
        modality = ("xray", "mri", "ct")[number % 3]
        width, height = ((150, 120), (120, 150), (132, 132))[rng.integers(3)]
        style = Style(width, height, rng.uniform(0.7, 1.25), 0.05, 1.15, 0.08, 0.92)
        scene = _scene(rng, modality, style)
        name = f"synpic{20000 + 3 * number}"
        sha256 = save_image(folder / "VQAMed2019Test" / "VQAMed2019_Test_Images" / f"{name}.jpg", _rgb(scene))
        asked = _med_question(rng, scene, category)
        lines.append(f"{name}|{category}|{asked.text}|{asked.answer}\n")
        written.tell(sha256, asked.text, scene.modality, scene.findings, asked.expect)
    path = folder / "VQAMed2019Test" / "VQAMed2019_Test_Questions_w_Ref_Answers.txt"
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    written.declare("vqa_med", "test", rows=len(lines), images=len(lines))
    written.counts.append(("vqa_med", "images and test rows", len(lines)))


def _med_question(rng: np.random.Generator, scene: Scene, category: str) -> Asked:
    word = MODALITIES[scene.modality].lower()
    if category == "modality":
        if rng.random() < 0.5:
            return Asked("what modality is shown?", word, {"any_of": [word, word.replace("-", " ")]}, "open")
        guess = str(rng.choice([m.lower() for m in MODALITIES.values()]))
        return _lower(yes_no(f"is this {'an' if guess[0] in 'xm' else 'a'} {guess} scan?", guess == word, "image"))
    if category == "plane":
        text = str(rng.choice(["what is the plane?", "in what plane is this image taken?"]))
        return Asked(text, MED_PLANES[scene.modality], {"any_of": [MED_PLANES[scene.modality]]}, "open")
    if category == "organ":
        return Asked(
            "what organ is shown in this image?", "#".join(scene.organs), {"any_of": list(scene.organs)}, "open"
        )
    if scene.findings and rng.random() < 0.6:
        asked = diseases_asked("what abnormality is seen in the image?", scene.findings, "open")
    else:
        asked = yes_no("is this a normal image?", not scene.findings, "image")
    return _lower(asked)


def _lower(asked: Asked) -> Asked:
    return Asked(asked.text, asked.answer.lower(), asked.expect, asked.family)


# Path-VQA -------------------------------------------------------------------------------------------


def _write_path_vqa(folder: Path, params: Phantom, written: Written) -> None:
    """Write one item per image; some images are CMYK or greyscale, some have no question."""
    rng = np.random.default_rng([params.test_seed, 30])
    items: list[dict] = []
    rows, asked_about, conflicts = 0, 0, 0
    while rows < params.benchmark_rows:
        number = len(items)
        name = f"test_{number:04d}"
        tissue = microscopy.draw_tissue(rng, params.image_size)
        image = tissue.image.convert("CMYK") if number % 12 == 5 else tissue.image
        sha256 = save_image(folder / "images" / "test" / f"{name}.jpg", image)
        count = 0 if number % 10 == 0 else min(int(rng.integers(2, 6)), params.benchmark_rows - rows)
        asked = microscopy.tissue_questions(rng, tissue, count) if count else []
        told = set()
        for question in asked:
            if question.text not in told:  # two answers to one question have one truth
                written.tell(sha256, question.text, "pathology", [], question.expect)
            told.add(question.text)
        questions = [q.text.replace("?", " ?") if (rows + i) % 9 == 0 else q.text for i, q in enumerate(asked)]
        answers = [{q.answer.lower(): 1} for q in asked]
        items.append({"img_id": name, "labelf": {"pvqa": answers}, "sentf": {"pvqa": questions}})
        rows += count
        asked_about += bool(count)
        conflicts += len({(q.text, q.answer.lower()) for q in asked}) - len(told)
    write_json(folder / "pvqa_test.json", items)
    written.declare("path_vqa", "test", rows=rows, images=asked_about, conflicting_groups=conflicts)
    written.counts.append(("path_vqa", "images", len(items)))
    written.counts.append(("path_vqa", "test rows", rows))


# CV-Bench -------------------------------------------------------------------------------------------


def _write_cv_bench(folder: Path, params: Phantom, written: Written) -> None:
    from rarl.phantom.general import cv_bench_rows

    lines: dict[str, list[str]] = {"2D": [], "3D": []}
    for image, row in cv_bench_rows(params.test_seed, params.benchmark_rows, params.image_size):
        filename = f"img/{row['type']}/{row['task'].lower()}/phantom_{row['idx']}.png"
        sha256 = save_image(folder / filename, image)
        lines[row["type"]].append(json.dumps({**row, "filename": filename}, ensure_ascii=False) + "\n")
        index = "ABCDEF".index(row["answer"].strip("()"))
        text = str(row["choices"][index])
        accepted = [text, row["answer"], "ABCDEF"[index], f"{row['answer']} {text}"]
        written.tell(sha256, row["prompt"], "other", [], {"any_of": accepted})
    count = sum(map(len, lines.values()))
    written.declare("cv_bench", "test", rows=count, images=count)
    for kind, rows in lines.items():
        (folder / f"test_{kind.lower()}.jsonl").write_text("".join(rows), encoding="utf-8", newline="\n")
        written.counts.append(("cv_bench", f"test_{kind.lower()} rows", len(rows)))


# SAT ------------------------------------------------------------------------------------------------


def _write_sat(folder: Path, params: Phantom, written: Written) -> None:
    """Write general-domain training rows in parquet with the images inside, as on the hub."""
    import pyarrow
    import pyarrow.parquet

    from rarl.phantom.general import cv_bench_rows

    folder.mkdir(parents=True)
    plan = {"train": params.sat_rows, "val": OTHER_SAT_ROWS, "test": OTHER_SAT_ROWS}
    for number, (split, count) in enumerate(plan.items()):
        seed = (params.test_seed if split == "test" else params.seed) + 1000 * (number + 1)
        rows = []
        for image, row in cv_bench_rows(seed, count, params.image_size):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            gold = row["choices"]["ABCDEF".index(row["answer"].strip("()"))]
            rows.append(
                {
                    "image_bytes": [buffer.getvalue()],
                    "question": row["question"],
                    "answers": [str(choice) for choice in row["choices"]],
                    "question_type": row["task"],
                    "correct_answer": str(gold),
                }
            )
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"SAT_{split}.parquet")
        written.declare("sat", {"val": "validate"}.get(split, split), rows=count)
        written.counts.append(("sat", f"{split} rows", count))
