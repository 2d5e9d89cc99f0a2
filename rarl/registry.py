"""What the pipeline knows by name: data sets, models, judge kinds and rewards. One line each, and nowhere else.

A name is also the name of the module that defines it:

| table | module | which defines |
|---|---|---|
| `DATA_SETS` | `rarl/data/adapters/<name>.py` | a release's reader (`rarl/data/adapters/__init__.py`) |
| `JUDGE_KINDS` | `rarl/judges/<name>.py` | `judge`, which rates predictions (`rarl/judges/__init__.py`) |
| `REWARDS` | `rarl/rewards/<name>.py` | `reward` or `make_reward` (`rarl/rewards/__init__.py`) |

`rarl/params.py` accepts these names and no others. Tables, plots and pages take labels and colours from here, in this
order. CONTRIBUTING.md shows an extension of each kind.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSet:
    """A data set and what it can be used for.

    Attributes:
        label: its name in tables and pages.
        benchmark: whether it can be listed under `benchmarks`.
        training: whether it can be `train.source`; its test split is then the own test set.
        release: the release that its rows are read from, if that is another data set's.
    """

    label: str
    benchmark: bool = True
    training: bool = False
    release: str | None = None


@dataclass(frozen=True)
class Model:
    """A model that is evaluated; `trained_by` completes "trained by" and is None for the base and for rivals."""

    label: str
    colour: str
    trained_by: str | None = None


@dataclass(frozen=True)
class JudgeKind:
    """A kind of judge.

    Attributes:
        how: completes "This judge ..." in the report.
        needs: settings that a judge of this kind cannot do without.
        asks: whether it asks a language model, so that each completion is kept and all test sets are asked at once.
        form_blind: whether it rates what an answer means, be it a word or a sentence.
    """

    how: str
    needs: tuple[str, ...] = ()
    asks: bool = False
    form_blind: bool = True


@dataclass(frozen=True)
class Reward:
    """A reward of the RL methods; `weight` is its weight where `params.yaml` gives none."""

    label: str
    weight: float = 0.0


DATA_SETS = {
    "silvar_med": DataSet("Silvar-Med", benchmark=False, training=True, release="slake"),
    "own": DataSet("Own data", training=True),
    "sat": DataSet("SAT", benchmark=False, training=True),
    "vqa_rad": DataSet("VQA-RAD"),
    "slake": DataSet("SLAKE"),
    "vqa_med": DataSet("VQA-Med 2019"),
    "path_vqa": DataSet("Path-VQA"),
    "cv_bench": DataSet("CV-Bench"),
}
BENCHMARKS = tuple(name for name, data_set in DATA_SETS.items() if data_set.benchmark)
SOURCES = tuple(name for name, data_set in DATA_SETS.items() if data_set.training)

#: Colours are dark enough for white paper and light enough for a dark page, and most colour-blind readers can tell
#: them apart (after Okabe and Ito).
MODELS = {
    "base": Model("Base", "#8a8f98"),
    "sft": Model("SFT", "#d9822b", "supervised fine-tuning on the annotated reasoning and the answers"),
    "grpo": Model("RL + LoRA", "#3d8fd1", "GRPO with rewards for format, length and accuracy"),
    "rarl": Model("RARL", "#12a07a", "RARL: GRPO with an additional reward for the reasoning, under diverse prompts"),
}
METHODS = tuple(name for name, model in MODELS.items() if model.trained_by)
#: Colours of rivals, in the order in which `models` lists them: at least 18 apart (CIE 1976) from one another and from
#: those above, also for protanopes, deuteranopes and tritanopes (Machado et al., 2009).
RIVAL_COLOURS = ("#aa00ff", "#bb1133", "#6644bb", "#993388", "#aa66ff", "#775566")


def rival_of(label: str, number: int) -> Model:
    """Return a rival with the colour of its number among the rivals; the colours repeat."""
    return Model(label, RIVAL_COLOURS[number % len(RIVAL_COLOURS)])


JUDGE_KINDS = {
    "lexical": JudgeKind(
        "compares the answer's words with the reference answers, also in a sentence", form_blind=False
    ),
    "semantic": JudgeKind(
        "also accepts synonyms and alike sentence embeddings, and rejects what contradicts the reference",
        needs=("threshold", "reasoning_threshold"),
    ),
    "truth": JudgeKind("knows the findings of the phantom image, and so rates the content rather than the wording"),
    "llm": JudgeKind(
        "is a language model with the prompt of the paper's appendix B", needs=("base_url", "model"), asks=True
    ),
    "local": JudgeKind(
        "is a language model on this machine with the prompt of the paper's appendix B", needs=("model",), asks=True
    ),
    "human": JudgeKind("is a person at the rating page, who did not know which model had answered"),
}

REWARDS = {
    "format": Reward("Format", weight=1.0),
    "length": Reward("Length", weight=1.0),
    "accuracy": Reward("Accuracy", weight=1.0),
    "reasoning": Reward("Reasoning"),
}
