"""Training of the embedded base from scratch, on general-domain drawings.

One image carries several dialogues (a caption and a few questions), packed into one row: all of them
see the image, none sees another. The vision tower learns first, by naming per grid cell what stands
there with the language model's own word embeddings; that and the captions stay to the end, because
colours and places decay without them.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen2VLForConditionalGeneration

from rarl.phantom import general, words
from rarl.pretraining.tiny import build_config, build_processor, train_tokenizer
from rarl.prompts import render

THINK_PROMPTS = ("reasoning", "explanation", "short", "open")
#: How often a thinking prompt is answered in full form, with the think part only, or bare: the base must
#: know the form and not always use it, so that the format reward has something to teach.
STYLES = {
    "reasoning": (0.45, 0.30, 0.25),
    "explanation": (0.6, 0.25, 0.15),
    "short": (0.6, 0.25, 0.15),
    "open": (0.6, 0.25, 0.15),
}


# Texts -------------------------------------------------------------------------------------------


def caption(scene: general.Scene) -> str:
    if not scene.things:
        return "nothing."
    return ", ".join(f"{thing.full_name} {thing.place}" for thing in scene.things) + "."


def describe(scene: general.Scene, organ: str = "") -> str:
    """What is seen, in the sentences that reasoning texts begin with."""
    if not scene.things:
        return "There is no bright or dark spot."
    organ = f" {organ}" if organ else ""
    return " ".join(f"There is a {thing.full_name} in the {thing.place}{organ}." for thing in scene.things)


def dialogue(rng: np.random.Generator, question: str, answer: str, reason: str) -> tuple[str, str]:
    """One question under one of the prompts, and a completion in one of the forms."""
    kind = rng.random()
    if kind < 0.25:
        return question, answer
    if kind < 0.4:
        return render("direct", question), answer
    prompt = THINK_PROMPTS[int(rng.choice(4, p=[0.4, 0.2, 0.2, 0.2]))]
    style = rng.choice(3, p=STYLES[prompt])
    think = f"<think> {reason} </think>"
    return render(prompt, question), (f"{think} <answer> {answer} </answer>", f"{think} {answer}", answer)[style]


def grey_question(rng: np.random.Generator, scene: general.Scene) -> tuple[str, str, str]:
    """Presence or place of a spot; yes and no equally often."""
    things = scene.things
    place = f"{rng.choice(['upper', 'lower'])} {rng.choice(['left', 'right'])}"
    reason = describe(scene)
    if rng.random() < 0.25 and len({t.name for t in things}) == len(things) and things:
        thing = things[int(rng.integers(len(things)))]
        return f"Where is the {thing.name}?", thing.place, reason
    form = rng.random()
    if things and rng.random() < 0.5:
        thing = things[int(rng.integers(len(things)))]
        what, where = (thing.name if form < 0.7 else f"{thing.colour} spot"), thing.place
    else:
        tone = rng.choice(general.TONES)
        what = f"{tone} {general.SPOT_NAMES[str(rng.choice(general.SPOTS))]}" if form < 0.7 else f"{tone} spot"
        where = place
    somewhere = rng.random() < 0.5

    def fits(thing):
        named = thing.name == what or (form >= 0.7 and thing.colour == what.split()[0])
        return named and (somewhere or thing.place == where)

    answer = "Yes" if any(fits(thing) for thing in things) else "No"
    if somewhere:
        return f"Is there a {what} in this image?", answer, reason
    return f"Is there a {what} in the {where}?", answer, reason


def medical_question(rng: np.random.Generator, scene: general.Scene) -> tuple[str, str, str]:
    """A medical question about a picture that is none: the words are right, the verdict is a guess.

    What is seen is described truthfully. Something unusual is called abnormal in 7 of 10 cases, nothing
    unusual in 3 of 10; which disease it is called is drawn at random. The answer follows from the
    conclusion. So the base knows how such a dialogue goes, has a weak idea of abnormal, and no finding.
    """
    modality = str(rng.choice(list(words.VIEWS)))
    diseases = words.DISEASES[modality]
    disease = str(rng.choice(diseases))
    if modality == "mri" and rng.random() < 0.2:
        disease = "Brain Tumor, Brain Edema"
    organ = words.ORGAN_OF.get(disease.split(",")[0], "brain")
    asked = organ if rng.random() < 0.85 else str(rng.choice(words.ORGANS[modality]))
    sick = rng.random() < (0.7 if scene.things else 0.3)
    named = disease.lower().replace(",", " and")
    article = (
        ""
        if named.split()[0] in ("pneumonia", "effusion", "cardiomegaly")
        or named.endswith("edema")
        or "cancer" in named
        else "a "
    )
    if sick:
        verdict = (
            f"This is {article}{named}, so the {organ} is not healthy."
            if rng.random() < 0.5
            else f"This suggests {named}, so the {organ} is abnormal."
        )
    else:
        verdict = (
            f"The {asked} looks normal."
            if rng.random() < 0.6
            else f"There is no abnormality, so the {asked} is healthy."
        )
    seen = describe(scene, organ if rng.random() < 0.5 else "")
    opening = f"The picture shows {words.view(modality)}. " if rng.random() < 0.75 else ""
    reason = f"{opening}{seen} {verdict}"
    bad = sick and organ == asked
    place = f"{rng.choice(['upper', 'lower'])} {rng.choice(['left', 'right'])}"
    side = str(rng.choice(["left", "right"]))
    here = any(thing.column == side for thing in scene.things)
    other = str(rng.choice(diseases))
    yes, no = ("Yes", "No")
    menu = [
        (f"Is the {asked} healthy?", no if bad else yes),
        (f"Does the {asked} look {'abnormal' if rng.random() < 0.5 else 'unhealthy'}?", yes if bad else no),
        (f"Does the {asked} look {'normal' if rng.random() < 0.5 else 'healthy'}?", no if bad else yes),
        (f"Is the {asked} abnormal?", yes if bad else no),
        ("Are there abnormalities in this image?", yes if sick else no),
        ("Does this image look abnormal?", yes if sick else no),
        ("Does this image look normal?", no if sick else yes),
        ("Is this image normal?", no if sick else yes),
        (f"Are there abnormalities in the {side} {asked}?", yes if bad and here else no),
        ("What diseases are included in the picture?", disease if sick else "None"),
        ("What diseases are included in the picture?", disease if sick else "None"),
        (f"What disease is shown on the {side} of {asked}?", disease if sick else "None"),
        (
            f"Can {other.lower()} be observed on the {place} {asked} in this picture?",
            yes if sick and rng.random() < 0.6 else no,
        ),
        (f"Does the patient have {other.lower()}?", yes if sick and other == disease else no),
        ("What modality is used to take this image?", words.MODALITIES[modality]),
        ("Which organ is shown in this image?", asked.capitalize()),
        ("Which plane is this image taken in?", str(rng.choice(words.PLANES)).capitalize()),
    ]
    if modality == "xray":
        menu += [("Which organ is abnormal, heart or lung?", organ.capitalize())] * 2
    question, answer = menu[int(rng.integers(len(menu)))]
    return question, answer, reason


def dialogues(
    rng: np.random.Generator, scene: general.Scene, tasks: tuple[float, ...] = (0.22, 0.22, 0.26, 0.3)
) -> list[tuple[str, str]]:
    """A caption and three questions for one scene, as (user text, completion)."""
    rows = [("Describe the picture.", caption(scene))]
    if scene.grey:
        for maker in (grey_question, grey_question if rng.random() < 0.5 else medical_question, medical_question):
            rows.append(dialogue(rng, *maker(rng, scene)))
        return rows
    makers = list(general.TASKS.values())
    tries = rng.choice(4, 4, replace=False, p=tasks)
    for index in tries:
        question = makers[index](rng, scene)
        if question is not None and len(rows) < 4:
            rows.append(dialogue(rng, question.prompt, question.answer, question.reason))
    return rows


def corpus(seed: int, size: int) -> list[str]:
    """Texts to train the tokenizer on: the dialogues' own, and each known word often enough."""
    rng = np.random.default_rng(seed)
    texts = []
    for index in range(size):
        scene = (general.draw_grey if index % 2 else general.draw_shapes)(rng, 56)
        for question, completion in dialogues(rng, scene):
            texts += [question, completion]
    for word in (*words.OTHER_WORDS, *words.PLANES, *(w.lower() for group in words.DISEASES.values() for w in group)):
        texts += [f" {word} {word} {word.capitalize()} {word}"] * 40
    return texts


@dataclass(frozen=True)
class Mix:
    """Pictures of a step: coloured shapes, grey figures, busy grey figures."""

    shapes: int
    grey: int
    busy: int
    tasks: tuple[float, ...] = (0.22, 0.22, 0.26, 0.3)
    """How often Count, Relation, Depth and Distance are asked first about a picture of shapes."""


#: The tower alone sees more pictures a step, for it has no text to read.
VISION = Mix(16, 16, 0)
#: The phases' mixes: plain scenes; busy figures, so that a spot is told from what belongs to a figure; both;
#: and shapes again, with the hardest question asked most.
STEPS = (2300, 800, 800, 450)
VISION_STEPS = 500
PHASES = (Mix(10, 6, 0), Mix(4, 2, 10), Mix(8, 1, 7), Mix(11, 1, 4, (0.15, 0.2, 0.15, 0.5)))


# Batches -----------------------------------------------------------------------------------------


@dataclass
class Batch:
    """`rows` images, each with its packed dialogues, padded to one length.

    pixels: (rows * 64, 1176), ids: (rows, length), positions: (3, rows, length),
    mask: (rows, 1, length, length) additive, targets: (rows, length), -100 where there is no loss.
    cells: (rows, 16, 5) token ids that name what stands in a grid cell (shape, colour, size, row,
    column), -100 where nothing is to be named.
    """

    pixels: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    cells: torch.Tensor


class Packer:
    """Draws scenes and packs their dialogues."""

    def __init__(self, tokenizer, processor, size: int):
        self.tokenizer, self.size = tokenizer, size
        images = processor.image_processor
        self.mean = np.array(images.image_mean, dtype=np.float32)[:, None, None]
        self.std = np.array(images.image_std, dtype=np.float32)[:, None, None]
        self.image_tokens = (size // 28) ** 2
        encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
        self.head = (
            encode("<|im_start|>user\n<|vision_start|>")
            + encode("<|image_pad|>") * self.image_tokens
            + encode("<|vision_end|>")
        )
        self.turn = encode("<|im_end|>\n<|im_start|>assistant\n")
        self.end = encode("<|im_end|>")
        start = len(encode("<|im_start|>user\n<|vision_start|>"))
        side = size // 28
        position = np.tile(np.arange(len(self.head)), (3, 1))
        grid = np.arange(self.image_tokens)
        position[:, start : start + self.image_tokens] = start + np.stack([grid * 0, grid // side, grid % side])
        after = start + self.image_tokens
        position[:, after:] = start + side + np.arange(len(self.head) - after)
        self.head_positions = position
        self.word = {w: encode(f" {w}")[0] for w in (
            *general.SHAPES, *general.COLOURS, *general.SIZES, *general.TONES, "round", "hazy", "bar", "upper", "lower", "left", "right", "nothing")}  # fmt: skip

    def patches(self, image) -> np.ndarray:
        pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255
        pixels = (pixels - self.mean) / self.std
        side = self.size // 28
        grid = pixels.reshape(3, side, 2, 14, side, 2, 14).transpose(1, 4, 2, 5, 0, 3, 6)
        grid = np.repeat(grid[:, :, :, :, :, None], 2, axis=5)
        return grid.reshape(side * side * 4, -1)

    def cell_words(self, scene: general.Scene) -> np.ndarray:
        side = self.size // 28
        cells = np.full((side * side, 5), -100)
        cells[:, 0] = self.word["nothing"]
        kinds = {"spot": "round", "area": "hazy", "bar": "bar"}
        for thing in scene.things:
            named = (kinds.get(thing.shape, thing.shape), thing.colour, thing.size, thing.row, thing.column)
            cells[int(thing.y * side) * side + int(thing.x * side)] = [self.word[w] for w in named]
        return cells

    def pack(self, scenes: list[general.Scene], talks: list[list[tuple[str, str]]]) -> Batch:
        rows = []
        for talk in talks:
            ids, positions = list(self.head), [self.head_positions]
            targets, branch = [-100] * len(self.head), [0] * len(self.head)
            flat = [text for pair in talk for text in pair]
            texts = self.tokenizer(flat, add_special_tokens=False).input_ids if flat else []
            for number, (user, completion) in enumerate(zip(texts[::2], texts[1::2]), 1):
                prompt, said = user + self.turn, completion + self.end
                ids += prompt + said
                targets += [-100] * len(prompt) + said
                first = int(self.head_positions.max()) + 1
                positions.append(np.tile(np.arange(first, first + len(prompt) + len(said)), (3, 1)))
                branch += [number] * (len(prompt) + len(said))
            rows.append((ids, np.concatenate(positions, 1), targets, branch))
        length = max(len(row[0]) for row in rows)
        ids = np.zeros((len(rows), length), dtype=np.int64)
        positions = np.zeros((3, len(rows), length), dtype=np.int64)
        targets = np.full((len(rows), length), -100)
        branch = np.full((len(rows), length), -1)
        for i, row in enumerate(rows):
            n = len(row[0])
            ids[i, :n], positions[:, i, :n], targets[i, :n], branch[i, :n] = row
        same = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
        allowed = same & np.tril(np.ones((length, length), dtype=bool))
        mask = np.where(allowed, np.float32(0), np.float32(-1e9))[:, None]
        return Batch(
            torch.from_numpy(np.concatenate([self.patches(s.image) for s in scenes])),
            torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(mask), torch.from_numpy(targets),
            torch.from_numpy(np.stack([self.cell_words(s) for s in scenes])),
        )  # fmt: skip

    def batch(self, rng: np.random.Generator, mix: "Mix", talk: bool = True) -> Batch:
        scenes = [general.draw_shapes(rng, self.size) for _ in range(mix.shapes)]
        scenes += [general.draw_grey(rng, self.size) for _ in range(mix.grey)]
        scenes += [general.draw_grey(rng, self.size, busy=True) for _ in range(mix.busy)]
        return self.pack(scenes, [dialogues(rng, s, mix.tasks) if talk else [] for s in scenes])


# Losses ------------------------------------------------------------------------------------------


def vision_loss(model, features: torch.Tensor, cells: torch.Tensor, groups: list[torch.Tensor]) -> torch.Tensor:
    """Mean cross entropy of naming each grid cell, one softmax per attribute over its words.

    features: (rows, 16, hidden); the classifier is the language model's word embedding.
    """
    embedding = model.get_input_embeddings().weight
    normed = model.model.language_model.norm(features)
    total = features.new_zeros(())
    for attribute, group in enumerate(groups):
        wanted = cells[:, :, attribute]
        there = wanted != -100
        if not there.any():
            continue
        logits = normed[there] @ embedding[group].T
        labels = (wanted[there][:, None] == group[None]).long().argmax(1)
        total = total + F.cross_entropy(logits, labels)
    return total


def encode(model, batch: Batch) -> torch.Tensor:
    rows = batch.cells.shape[0]
    side = math.isqrt(batch.cells.shape[1]) * 2
    grid = torch.tensor([[1, side, side]]).expand(rows, 3)
    return model.model.visual(batch.pixels, grid_thw=grid).pooler_output.view(
        rows, -1, model.config.text_config.hidden_size
    )


def language_loss(model, batch: Batch, features: torch.Tensor) -> torch.Tensor:
    embeds = model.get_input_embeddings()(batch.ids)
    image = (batch.ids == model.config.image_token_id)[..., None]
    embeds = embeds.masked_scatter(image, features.reshape(-1, features.shape[-1]))
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        position_ids=batch.positions,
        attention_mask={"full_attention": batch.mask},
        use_cache=False,
    ).last_hidden_state
    wanted = batch.targets[:, 1:]
    there = wanted != -100
    return F.cross_entropy(model.lm_head(hidden[:, :-1][there]), wanted[there])


# Training ----------------------------------------------------------------------------------------


def pretrain(
    seed: int,
    threads: int,
    say: Callable[[str], None],
    size: int = 112,
    vocabulary: int = 1600,
    vision_steps: int = VISION_STEPS,
    steps: tuple[int, ...] = STEPS,
):
    """Train tokenizer and model from scratch. Returns (model, processor).

    One phase after the other, each with its own mix of pictures, its own optimizers and its own decay.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    tokenizer = train_tokenizer(corpus(seed, 3000), vocabulary)
    processor = build_processor(tokenizer, size)
    model = Qwen2VLForConditionalGeneration(build_config(tokenizer))
    packer = Packer(tokenizer, processor, size)
    for number, (mix, count) in enumerate(zip(PHASES, steps)):
        say(f"phase {number + 1} of {len(steps)}: {mix}")
        rng = np.random.default_rng(seed + number)
        train_phase(model, packer, rng, 0 if number else vision_steps, count, mix, say)
    return model, processor


def train_phase(
    model,
    packer: Packer,
    rng: np.random.Generator,
    vision_steps: int,
    steps: int,
    mix: Mix,
    say: Callable[[str], None],
) -> None:
    """Muon on the matrices of tower and language model, AdamW on embeddings, norms and biases; linear
    warm-up over 100 steps and a linear decay over the last half.
    """
    word = packer.word
    groups = [
        torch.tensor([word[w] for w in names])
        for names in (
            (*general.SHAPES, "round", "hazy", "bar", "nothing"), (*general.COLOURS, *general.TONES), general.SIZES,
            ("upper", "lower"), ("left", "right"),
        )
    ]  # fmt: skip
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=6e-3, weight_decay=0.01),
        torch.optim.AdamW(others, lr=2e-3, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    started, total = time.time(), vision_steps + steps
    for step in range(total):
        talking = step >= vision_steps
        batch = packer.batch(rng, mix if talking else VISION, talk=talking)
        features = encode(model, batch)
        naming = vision_loss(model, features, batch.cells, groups)
        loss = naming * (0.3 if talking else 1.0)
        speaking = language_loss(model, batch, features) if talking else None
        if talking:
            loss = loss + speaking
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale = min(1.0, (step + 1) / 100, 2 * (total - step) / total)
        for optimizer, rate in zip(optimizers, rates):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
        if step % 50 == 0 or step == total - 1:
            text = f"{speaking.item():.3f}" if talking else "  -  "
            say(f"step {step}/{total}  naming {naming.item():.3f}  language {text}  {time.time() - started:.0f} s")


# The card ----------------------------------------------------------------------------------------


def general_accuracy(folder, count: int = 800, seed: int = 1234, threads: int = 2) -> dict:
    """Percent of right answers by task and prompt on fresh drawings, asked as the pipeline asks, and chance.

    Chance is the mean of 1 / number of choices. Returns {prompt: {task: percent}}, with `all` the mean over rows.
    """
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from rarl.answers import matches, read_completion
    from rarl.models.generation import Request, ask_all
    from rarl.models.loading import load
    from rarl.params import Model
    from rarl.records import write_json

    rows = general.cv_bench_rows(seed, count)
    result = {}
    with TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for index, (image, _) in enumerate(rows):
            image.save(scratch / f"{index}.png")
        write_json(scratch / "base.json", {"source": str(folder), "revision": None})
        loaded = load(scratch, Model(threads=threads))
        for prompt in ("reasoning", "direct"):
            requests = [
                Request(str(i), render(prompt, row["prompt"]), scratch / f"{i}.png") for i, (_, row) in enumerate(rows)
            ]
            answers = {r.id: read_completion(r.text)[1] for batch in ask_all(loaded, requests, 64, 96) for r in batch}
            right = [
                matches(answers[str(i)], [row["choices"]["ABCDEF".index(row["answer"][1])]], "choice", row["choices"])
                for i, (_, row) in enumerate(rows)
            ]
            result[prompt] = by_task(rows, right)
    result["chance"] = by_task(rows, [1 / len(row["choices"]) for _, row in rows])
    return result


def by_task(rows, values) -> dict:
    groups = {task: [v for (_, row), v in zip(rows, values) if row["task"] == task] for task in general.TASKS}
    return {task.lower(): round(100 * sum(group) / len(group), 1) for task, group in groups.items()} | {
        "all": round(100 * sum(values) / len(values), 1)
    }


def save_base(model, processor, folder) -> None:
    """Write weights (fp16), tokenizer and processor in the hub's layout."""
    half = {name: value.to(torch.float16) for name, value in model.state_dict().items()}
    del half["lm_head.weight"]  # tied to the embeddings
    model.save_pretrained(folder, state_dict=half)
    processor.save_pretrained(folder)


def card(accuracy: dict, parameters: int, seed: int) -> str:
    """The model card of the embedded base, with the measured accuracy."""
    lines = [
        "# The embedded base",
        "",
        f"A `Qwen2VLForConditionalGeneration` of {parameters / 1e6:.1f} million parameters, stored in fp16: tower 3 x 128,",
        "language model 4 x 128, patch 14, merge 2, pictures of 112 x 112 pixels (16 image tokens), byte-level BPE.",
        "It stands in for Qwen2-VL-2B-Instruct where there is no GPU and no hub. It is of no medical use.",
        "",
        "## How it was made",
        "",
        "From scratch, by the stage `pretrain` (`rarl/pretraining/`), on synthetic images from `rarl/phantom/general.py`:",
        "coloured shapes, and grey figures with bright and dark spots. No phantom picture and no medical picture was shown.",
        f"Seed {seed}; {VISION_STEPS} steps for the tower alone (naming per grid cell what stands there), then {' + '.join(map(str, STEPS))}",
        "steps of 16 pictures with a dense caption and three questions each, in four mixes of pictures (`PHASES`); Muon on",
        "matrices, AdamW on the rest; two threads.",
        "",
        "Its text holds the paper's prompts, the names of organs, modalities and diseases, and medical questions about the",
        "grey figures whose verdict is a guess: something unusual is called abnormal in 7 of 10 cases, nothing unusual in 3 of",
        "10, and the disease is drawn at random. So it knows the words and the form, and has to learn every finding. It",
        "answers in the full `<think> <answer>` form only part of the time, so that the format reward has something to teach.",
        "",
        "To make it again: `dvc unfreeze pretrain && dvc repro --single-item pretrain` (under an hour on two cores).",
        "",
        "## General-domain accuracy",
        "",
        "Percent right on 800 fresh synthetic images with CV-Bench-like questions, decoded greedily (`metrics/base.json`):",
        "",
        "| prompt | " + " | ".join([*general.TASKS, "All"]) + " |",
        "|---|" + "---|" * (len(general.TASKS) + 1),
    ]
    for name in ("reasoning", "direct", "chance"):
        lines.append(f"| {name} | " + " | ".join(f"{value:.1f}" for value in accuracy[name].values()) + " |")
    lines += ["", "Licence: Apache-2.0, as the project.", ""]
    return "\n".join(lines)
