"""Train the embedded base from scratch on general-domain synthetic images.

Several dialogues about one image (a caption and a few questions) are packed into one row: each attends to the image
and to itself only. The vision tower is trained first, by classifying the object of each grid cell with the language
model's word embeddings; this loss and the captions stay to the end, because colours and places are forgotten without
them.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen2VLForConditionalGeneration

from rarl.phantom import general, words
from rarl.pretraining.tiny import build_config, build_processor, train_tokenizer
from rarl.prompts import render
from rarl.records import read_json, write_json

THINK_PROMPTS = ("reasoning", "explanation", "short", "open")
#: How often a thinking prompt is answered in the full format, with the think part only, or with the bare answer: the
#: base must know the format and not always use it, so that the format reward has something to teach.
STYLES = {
    "reasoning": (0.45, 0.30, 0.25),
    "explanation": (0.6, 0.25, 0.15),
    "short": (0.6, 0.25, 0.15),
    "open": (0.6, 0.25, 0.15),
}


# Texts -------------------------------------------------------------------------------------------


def caption(scene: general.Scene) -> str:
    """List every object with its place."""
    if not scene.things:
        return "nothing."
    return ", ".join(f"{thing.full_name} {thing.place}" for thing in scene.things) + "."


def describe(scene: general.Scene, organ: str = "") -> str:
    """Describe the objects in sentences, as at the start of a reasoning text."""
    if not scene.things:
        return "There is no bright or dark spot."
    organ = f" {organ}" if organ else ""
    return " ".join(f"There is a {thing.full_name} in the {thing.place}{organ}." for thing in scene.things)


def dialogue(rng: np.random.Generator, question: str, answer: str, reason: str) -> tuple[str, str]:
    """Return one question under one of the prompts, and a completion in one of the formats."""
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
    """Ask for the presence or place of a spot; yes and no equally often. Returns (question, answer, reason)."""
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
    """Ask a medical question about a non-medical image: the words are right, the verdict is a guess.

    The description is true. Something unusual is called abnormal in 7 of 10 cases, nothing unusual in 3 of 10; the
    disease is random. The answer follows from the verdict. So the base knows the form of such a dialogue, has a weak
    notion of abnormal, and knows no finding. Returns (question, answer, reason).
    """
    modality = str(rng.choice(list(words.VIEWS)))
    diseases = words.DISEASES[modality]
    disease = str(rng.choice(diseases))
    if modality == "mri" and rng.random() < 0.2:
        disease = "Brain Tumor, Brain Edema"
    organ = words.ORGAN_OF.get(disease.split(",")[0], "brain")
    asked = organ if rng.random() < 0.85 else str(rng.choice(words.ORGANS[modality]))
    sick = rng.random() < (0.7 if scene.things else 0.3)
    verdict = _verdict(rng, disease.lower().replace(",", " and"), organ, asked, sick)
    seen = describe(scene, organ if rng.random() < 0.5 else "")
    opening = f"The picture shows {words.view(modality)}. " if rng.random() < 0.75 else ""
    menu = _medical_menu(rng, scene, modality, disease, organ, asked, sick)
    question, answer = menu[int(rng.integers(len(menu)))]
    return question, answer, f"{opening}{seen} {verdict}"


def _verdict(rng: np.random.Generator, disease: str, organ: str, asked: str, sick: bool) -> str:
    if not sick:
        healthy = f"There is no abnormality, so the {asked} is healthy."
        return f"The {asked} looks normal." if rng.random() < 0.6 else healthy
    uncountable = disease.startswith(("pneumonia", "effusion", "cardiomegaly")) or "cancer" in disease
    article = "" if uncountable or disease.endswith("edema") else "a "
    suggests = f"This suggests {disease}, so the {organ} is abnormal."
    return f"This is {article}{disease}, so the {organ} is not healthy." if rng.random() < 0.5 else suggests


def _medical_menu(
    rng: np.random.Generator, scene: general.Scene, modality: str, disease: str, organ: str, asked: str, sick: bool
) -> list[tuple[str, str]]:
    """Return the possible questions and their answers."""
    bad = sick and organ == asked
    place = f"{rng.choice(['upper', 'lower'])} {rng.choice(['left', 'right'])}"
    side = str(rng.choice(["left", "right"]))
    here = any(thing.column == side for thing in scene.things)
    other = str(rng.choice(words.DISEASES[modality]))
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
    return menu


def dialogues(
    rng: np.random.Generator, scene: general.Scene, tasks: tuple[float, ...] = (0.22, 0.22, 0.26, 0.3)
) -> list[tuple[str, str]]:
    """Return a caption and three questions for one scene, as (user text, completion)."""
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
    """Return the texts for the tokenizer: dialogues, and each known word often enough."""
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
    """Images per step: coloured shapes, grey figures, busy grey figures."""

    shapes: int
    grey: int
    busy: int
    tasks: tuple[float, ...] = (0.22, 0.22, 0.26, 0.3)
    """How often Count, Relation, Depth and Distance are asked first about an image of shapes."""


#: The vision tower alone trains on more images per step, because there is no text.
VISION = Mix(16, 16, 0)
#: The phases' mixes: plain scenes; busy figures, to distinguish spots from parts of a figure; both; and shapes again,
#: with the hardest question asked most.
STEPS = (2300, 800, 800, 450)
VISION_STEPS = 500
PHASES = (Mix(10, 6, 0), Mix(4, 2, 10), Mix(8, 1, 7), Mix(11, 1, 4, (0.15, 0.2, 0.15, 0.5)))


# Batches -----------------------------------------------------------------------------------------


@dataclass
class Batch:
    """Images with their packed dialogues, padded to one length.

    Attributes:
        pixels: (rows * 64, 1176).
        ids: (rows, length).
        positions: (3, rows, length).
        mask: (rows, 1, length, length), additive.
        targets: (rows, length), -100 where there is no loss.
        cells: (rows, 16, 5) token ids of the object in each grid cell (shape, colour, size, row, column), -100 where
            there is no loss.
    """

    pixels: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    cells: torch.Tensor


class Packer:
    """Draws scenes and packs their dialogues into batches."""

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
        names = ("round", "hazy", "bar", "upper", "lower", "left", "right", "nothing")
        names = (*general.SHAPES, *general.COLOURS, *general.SIZES, *general.TONES, *names)
        self.word = {name: encode(f" {name}")[0] for name in names}

    def patches(self, image) -> np.ndarray:
        """Return the image's normalized patches, (64, 1176) for 112 x 112 pixels."""
        pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255
        pixels = (pixels - self.mean) / self.std
        side = self.size // 28
        grid = pixels.reshape(3, side, 2, 14, side, 2, 14).transpose(1, 4, 2, 5, 0, 3, 6)
        grid = np.repeat(grid[:, :, :, :, :, None], 2, axis=5)
        return grid.reshape(side * side * 4, -1)

    def cell_words(self, scene: general.Scene) -> np.ndarray:
        """Return the token ids of the object in each grid cell, (16, 5)."""
        side = self.size // 28
        cells = np.full((side * side, 5), -100)
        cells[:, 0] = self.word["nothing"]
        kinds = {"spot": "round", "area": "hazy", "bar": "bar"}
        for thing in scene.things:
            named = (kinds.get(thing.shape, thing.shape), thing.colour, thing.size, thing.row, thing.column)
            cells[int(thing.y * side) * side + int(thing.x * side)] = [self.word[w] for w in named]
        return cells

    def pack(self, scenes: list[general.Scene], talks: list[list[tuple[str, str]]]) -> Batch:
        """Pack the dialogues of each scene into one row."""
        rows = []
        for talk in talks:
            ids, positions = list(self.head), [self.head_positions]
            targets, branch = [-100] * len(self.head), [0] * len(self.head)
            flat = [text for pair in talk for text in pair]
            texts = self.tokenizer(flat, add_special_tokens=False).input_ids if flat else []
            for number, (user, completion) in enumerate(zip(texts[::2], texts[1::2]), 1):
                prompt, target = user + self.turn, completion + self.end
                ids += prompt + target
                targets += [-100] * len(prompt) + target
                first = int(self.head_positions.max()) + 1
                positions.append(np.tile(np.arange(first, first + len(prompt) + len(target)), (3, 1)))
                branch += [number] * (len(prompt) + len(target))
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
        pixels = np.concatenate([self.patches(scene.image) for scene in scenes])
        cells = np.stack([self.cell_words(scene) for scene in scenes])
        return Batch(*map(torch.from_numpy, (pixels, ids, positions, mask, targets, cells)))

    def batch(self, rng: np.random.Generator, mix: "Mix", talk: bool = True) -> Batch:
        """Draw a batch of a mix, with dialogues if `talk` is set."""
        scenes = [general.draw_shapes(rng, self.size) for _ in range(mix.shapes)]
        scenes += [general.draw_grey(rng, self.size) for _ in range(mix.grey)]
        scenes += [general.draw_grey(rng, self.size, busy=True) for _ in range(mix.busy)]
        return self.pack(scenes, [dialogues(rng, s, mix.tasks) if talk else [] for s in scenes])


# Losses ------------------------------------------------------------------------------------------


def vision_loss(model, features: torch.Tensor, cells: torch.Tensor, groups: list[torch.Tensor]) -> torch.Tensor:
    """Return the cross entropy of classifying each grid cell, summed over attributes.

    Args:
        model: Its word embedding is the classifier.
        features: (rows, 16, hidden).
        cells: (rows, 16, 5), as in `Batch`.
        groups: Token ids of each attribute's words.
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
    """Return the vision tower's features, (rows, 16, hidden)."""
    rows = batch.cells.shape[0]
    side = math.isqrt(batch.cells.shape[1]) * 2
    grid = torch.tensor([[1, side, side]]).expand(rows, 3)
    return model.model.visual(batch.pixels, grid_thw=grid).pooler_output.view(
        rows, -1, model.config.text_config.hidden_size
    )


def language_loss(model, batch: Batch, features: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of the completions' tokens."""
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
    """Train tokenizer and model from scratch, in phases with their own mix of images, optimizers and decay.

    Returns:
        (model, processor).
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
    """Run one phase.

    Muon trains the matrices of vision tower and language model, AdamW the embeddings, norms and biases; linear warm-up
    over 100 steps and linear decay over the last half.
    """
    word = packer.word
    attributes = (
        (*general.SHAPES, "round", "hazy", "bar", "nothing"),
        (*general.COLOURS, *general.TONES),
        general.SIZES,
        ("upper", "lower"),
        ("left", "right"),
    )
    groups = [torch.tensor([word[name] for name in names]) for names in attributes]
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
    """Measure the percent of correct answers on fresh synthetic images, by task and prompt, with the pipeline's code.

    Returns:
        {prompt: {task: percent}}, with `all` the mean over rows, and `chance` the mean of 1 / number of choices.
    """
    from tempfile import TemporaryDirectory

    from rarl.answers.completion import read_completion
    from rarl.answers.matching import matches
    from rarl.models.generation import Request, ask_all
    from rarl.models.loading import load
    from rarl.params import Model

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
    """Return the mean of values in percent, by task and over all rows."""
    groups = {task: [v for (_, row), v in zip(rows, values) if row["task"] == task] for task in general.TASKS}
    return {task.lower(): round(100 * sum(group) / len(group), 1) for task, group in groups.items()} | {
        "all": round(100 * sum(values) / len(values), 1)
    }


def save_base(model, processor, folder) -> None:
    """Write weights (fp16), tokenizer and processor in the hub's layout, for stock classes."""
    half = {name: value.to(torch.float16) for name, value in model.state_dict().items()}
    del half["lm_head.weight"]  # tied to the embeddings
    model.save_pretrained(folder, state_dict=half)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # also in a file of its own, for vLLM
    settings = Path(folder) / "processor_config.json"
    write_json(settings, read_json(settings) | {"processor_class": "Qwen2VLProcessor"})


def make_base(folder: Path, seed: int, metrics: Path) -> None:
    """Pretrain the embedded base, and write its files, its model card and its accuracy."""
    model, processor = pretrain(seed, threads=2, say=click.echo)
    save_base(model, processor, folder)
    accuracy = general_accuracy(folder)
    write_json(metrics, accuracy)
    text = card(accuracy, sum(p.numel() for p in model.parameters()), seed)
    (folder / "README.md").write_text(text, encoding="utf-8")
    click.echo(f"pretrain: {accuracy['reasoning']['all']} % of general-domain questions right")


def card(accuracy: dict, parameters: int, seed: int) -> str:
    """Return the model card of the embedded base, with the measured accuracy."""
    rows = [
        [name, *(f"{value:.1f}" for value in accuracy[name].values())] for name in ("reasoning", "direct", "chance")
    ]
    header = ["prompt", *general.TASKS, "All"]
    table = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    table.insert(1, "|" + "---|" * len(header))
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    steps = " + ".join(map(str, STEPS))
    return template.format(
        parameters=parameters / 1e6, seed=seed, vision_steps=VISION_STEPS, steps=steps, table="\n".join(table)
    )
