"""A training run from parameters to a model folder: its key, its checkpoints, its log and its choice.

Checkpoints are in `.cache/training/<key>/`, outside the stage's outputs and named by all that the run depends on: a
stopped run resumes from its last one, and never from another run's.
"""

import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from peft import LoraConfig
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState

from rarl.answers.completion import read_completion
from rarl.answers.matching import is_right
from rarl.cache import CACHE, ROOT, announce_format, code_key, hash_code, key_of, packages
from rarl.errors import UserError
from rarl.models.families import FAMILIES
from rarl.models.features import FeatureStore, offload
from rarl.models.generation import Request, ask_all
from rarl.models.loading import Loaded, choose_device, load
from rarl.models.patching import vision_modules
from rarl.params import Params, Rl, Sft
from rarl.planning.memory import log_plan, recomputes
from rarl.processes.cost import note, processor_seconds
from rarl.processes.launch import is_main_process
from rarl.processes.stopping import Stopped, StopRequest
from rarl.prompts import render, template
from rarl.records import Sample, image_file, read_json, read_records, write_json
from rarl.sharing.model_card import counts, make_portable, write_card
from rarl.training.checkpoints import CheckpointGuard, StopAfterStep, check_weights, digests, last_complete_checkpoint
from rarl.training.data import choose, with_share
from rarl.training.health import HealthCallback
from rarl.training.live import Groups, Live, Trackers, trackers
from rarl.training.rows import LOGGED, first_and_last, named, write_csv
from rarl.training.sharding import count_trainable, gathered, shards_weights

CURATED = Path("data/curated")
FEATURES = Path("data/features/training")
PROMPT = "reasoning"
"""Of the development split, and of SFT."""
#: Names of `train.optimizer` in transformers.
OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}


class Run:
    """The training run of `sft`, `grpo` or `rarl`; `settings` are parameters that only this method depends on."""

    def __init__(self, method: str, params: Params, settings: dict):
        self.method, self.params, self.started = method, params, time.perf_counter()
        self.start = Path("data/models") / (params.train.start if method != "sft" else "base")
        self.output = Path("data/models") / method
        self.pointer = read_json(self.start / "base.json")
        self.full = params.train.trainable == "full"
        announce_format()
        trackers()  # a mistake in their names ends the run before anything is loaded
        shared = ("model", "lora", "train", "decoding", "accelerate")
        train, annotated = read_records(CURATED / "train.jsonl", Sample), params.train.annotated_share
        self.train = with_share(train, annotated, params.seed)
        uses_reasoning = method == "sft" or getattr(params, method).rewards.reasoning
        key = key_of(
            *(CURATED / "dev.jsonl", FEATURES, self.start),
            *filter(None, [params.accelerate.config]),
            # More annotations are no reason to train again where nothing reads them.
            rows=[row.model_dump_json(exclude=None if uses_reasoning else {"reasoning"}) for row in self.train],
            method=method,
            seed=params.seed,
            settings=settings,
            prompts={name: template(name) for name in {PROMPT, *settings.get("prompts", [])}},
            code=code_key(method, params.model.device),
            packages=packages(params),
            rules=hash_code((ROOT / "rarl/health.py").read_text(encoding="utf-8")) if params.train.stop_when else None,
            **{name: getattr(params, name).model_dump(exclude={"annotated_share"}) for name in shared},  # in `rows`
        )
        self.folder = CACHE / "training" / key
        self.folder.mkdir(parents=True, exist_ok=True)
        self.dev = read_records(CURATED / "dev.jsonl", Sample)[: params.train.dev_samples]
        if not self.train:
            fix = "see metrics/curate.json for what became of the release's rows"
            raise UserError(str(CURATED / "train.jsonl"), "no training row", "at least one", fix)

    def load(self) -> Loaded:
        """The model to train, with its image features; prints the memory plan first."""
        if is_main_process():
            print(log_plan(self.start, self.params, self.method), flush=True)
        model = self.params.model
        if self.full:
            # In bfloat16 most updates at a usual learning rate are smaller than a weight's last digit.
            model = model.model_copy(update={"dtype": "float32"})
        loaded = load(self.start, model, trainable=True)
        self.family = FAMILIES[loaded.model.config.model_type]
        # A tower in float32 cannot use what `encode` computed in bfloat16, and computes it again.
        store = FeatureStore.load(FEATURES, loaded) if model.dtype == self.params.model.dtype else FeatureStore()
        store.attach(loaded.model)
        if not self.full:  # whole models are saved with their tower
            offload(loaded.model)
        loaded.model.train()
        return loaded

    def lora(self) -> LoraConfig | None:
        """The adapter of section 2.3; None for full weights, or when a loaded adapter is trained."""
        if self.full or self.start.name != "base":
            return None
        lora = self.params.lora
        where = {"target_modules": list(lora.target_modules), "exclude_modules": self.family.lora_exclude}
        return LoraConfig(task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, **where)

    def learning_rate(self, method: Sft | Rl) -> float:
        """That of the adapter, or of full weights."""
        return method.learning_rate_full if self.full else method.learning_rate

    def batches(self, per_step: int, most: int, what: str) -> dict[str, int]:
        """Arguments of one process for steps of `per_step` rows (the key `what`), in passes of at most `most`."""
        processes = self.params.accelerate.processes
        per_pass = self.params.accelerate.per_pass(per_step, most)
        if per_step % (rows := per_pass * processes):
            found = f"{processes} processes (accelerate.processes) with {per_pass} a pass"
            fix = f"change {what}, its micro value, or accelerate.processes"
            raise UserError(f"{what} = {per_step}", found, f"a multiple of {rows}", fix)
        return {"per_device_train_batch_size": per_pass, "gradient_accumulation_steps": per_step // rows}

    def common_arguments(self) -> dict:
        """Trainer arguments that SFT and RL share."""
        params, train = self.params, self.params.train
        log = {"logging_steps": 1, "logging_nan_inf_filter": False, "report_to": "none"}
        save = {"save_strategy": "steps", "save_steps": train.eval_steps, "save_total_limit": train.keep_checkpoints}
        return {
            **log,
            **save,
            "output_dir": str(self.folder),
            "run_name": f"{self.method}-{self.folder.name[:8]}",
            "project": "rarl",
            "seed": params.seed,
            "data_seed": params.seed,
            "max_grad_norm": train.max_grad_norm,
            "lr_scheduler_type": "linear",
            "optim": OPTIMIZERS[train.optimizer],
            "bf16": params.model.dtype == "bfloat16",
            "activation_checkpointing": recomputes(self.start, params, self.method),
            "use_cpu": choose_device(params.model).type == "cpu",
            "dataloader_pin_memory": params.model.device != "cpu" and torch.cuda.is_available(),
            "remove_unused_columns": False,
        }

    def train_to_end(self, trainer, loaded: Loaded) -> dict:
        """Train or resume, choose the peak on the development split, and write the outputs.

        Returns:
            The run's metrics (also written to `metrics/train/<method>.json`); empty if this is not the main process.

        Raises:
            UserError: the processes are not those asked for, or training has changed no weight.
            Stopped: a signal has ended it early.
        """
        with self.alone(wait=True):
            try:
                request = StopRequest(signal.SIGINT, signal.SIGTERM)
                log = self.fit(trainer, loaded, request, live=True)
                if request.signal:
                    done, last = trainer.state.global_step, last_complete_checkpoint(self.folder)
                    saved = f"its last checkpoint is {Path(last).name}" if last else "it has no checkpoint yet"
                    text = f"{self.method}: stopped after {done} of {trainer.args.max_steps} steps; {saved}."
                    raise Stopped(text, request.signal)
                return self.write(trainer, log) if trainer.accelerator.is_main_process else {}
            except UserError:
                Path(f"metrics/train/{self.method}.json").unlink(missing_ok=True)  # no result
                raise

    def train_ahead(self, trainer, loaded: Loaded) -> None:
        """Train or resume in `folder` alone, until the end or SIGTERM; not where another process trains in it."""
        with suppress(Timeout), self.alone(wait=False):
            self.fit(trainer, loaded, StopRequest(signal.SIGTERM), live=False)

    @contextmanager
    def alone(self, wait: bool) -> Iterator[None]:
        """Keep other processes out of `folder`: two `dvc repro` at once, or a training that runs ahead.

        Raises:
            Timeout: another process is in it, and this one is not to wait.
        """
        if not is_main_process():
            yield
            return
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise
            tqdm.write(f"{self.method}: waiting for another process that trains in {self.folder}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def fit(self, trainer, loaded: Loaded, request: StopRequest, live: bool) -> "Log":
        """Train or resume until the end or the request, and keep the peak on the development split.

        Args:
            trainer: TRL's, with our mixins.
            loaded: its model.
            request: ends it after a step.
            live: write each step to `metrics/train`, and to the trackers.
        """
        self.check(trainer)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)  # prints a line of numbers a step; Log shows a bar
        loaded.shared = shards_weights(trainer.accelerator)
        log = Log(self, loaded, trainer.model)
        health = HealthCallback(log, trainer.args.max_steps)
        shown = [Live(self.method, log, trainer), Trackers(trackers(), self.method, log)]
        shown = shown if live and is_main_process() else []
        stop = StopAfterStep(request, trainer.accelerator)
        for callback in (log, health, Groups(trainer), *shown, CheckpointGuard(trainer), stop):
            trainer.add_callback(callback)
        trainer.state_name = self.method
        with trainer.accelerator.main_process_first():
            last = last_complete_checkpoint(self.folder)
        state = TrainerState.load_from_json(f"{last}/trainer_state.json") if last else None
        if state and (health.has_stopped(state) or state.global_step >= trainer.args.max_steps):
            # The trainer itself takes one more step wherever the last one does not end an epoch.
            tqdm.write(f"{self.method}: {last} is the last step, nothing is left to train")
            trainer.state = state
            for event in ("on_train_begin", "on_train_end"):
                trainer.callback_handler.call_event(event, trainer.args, state, trainer.control)
        else:
            if last:
                tqdm.write(f"{self.method}: resuming from {last}")
            ending = f"{self.method}: ends after this step, with a checkpoint; a second Ctrl-C ends it at once"
            with request.noted(ending if is_main_process() else None):
                try:
                    trainer.train(resume_from_checkpoint=last)
                except (RuntimeError, OSError, EOFError):
                    if request.signal is None:  # else it has ended a worker of the data loader within a batch
                        raise
        trainer.accelerator.wait_for_everyone()
        return log

    def check(self, trainer) -> None:
        """Raise an error if the trainer is not what was asked for."""
        asked, count = self.params.accelerate.processes, trainer.accelerator.num_processes
        if count != asked:  # a step would have other rows than asked for
            where, found = f"accelerate.processes = {asked}", f"{count} processes in training"
            fix = "start the stage as dvc.yaml does, without a launcher of your own"
            raise UserError(where, found, "the same number", fix)
        if any(p.requires_grad for module in vision_modules(trainer.model) for p in module.parameters()):
            raise RuntimeError("the vision tower must be frozen")
        if not any(p.requires_grad for p in trainer.model.parameters()):
            raise RuntimeError("there is no weight to train")

    def write(self, trainer, log: "Log") -> dict:
        """Write the best weights, the metrics and the log; returns the metrics."""
        steps, best = trainer.state.global_step, log.best()
        self.refuse_untrained(trainer, best["trained"])
        shutil.rmtree(self.output, ignore_errors=True)
        shutil.copytree(self.folder / f"best-{best['step']}", self.output)
        shutil.copyfile(self.start / "base.json", self.output / "base.json")
        rows = log.table(trainer.state.log_history)
        metrics = {
            "steps": steps,
            "trainable_parameters": count_trainable(trainer.model),
            "best_step": best["step"],
            "dev_score": best["dev_score"],
            **({"planned_steps": trainer.args.max_steps} if steps < trainer.args.max_steps else {}),
            **first_and_last(rows),
        }
        make_portable(self.output)
        trained = choose(self.train, self.params.train.samples, self.params.seed)
        model_type = trainer.model.config.model_type
        write_card(self.output, self.method, self.params, metrics, counts(trained, self.dev), model_type)
        write_json(f"metrics/train/{self.method}.json", metrics)
        write_csv(Path(f"metrics/train/{self.method}.csv"), rows)
        note(**{f"earlier_{key}": seconds for key, seconds in log.earlier.items()})
        score, seconds = f"development score {best['dev_score']}", f"{log.seconds():.0f} s"
        print(f"{self.method}: {steps} steps, best at {best['step']} ({score}), {seconds}", flush=True)
        return metrics

    def refuse_untrained(self, trainer, moved: bool) -> None:
        """Raise a UserError if no weight has moved, or if RL moved them by rounding in the KL term only."""

        def always(name: str) -> bool:
            return min((row[name] for row in trainer.state.log_history if name in row), default=0) == 1

        found = None
        if self.params.rl.mask_truncated and always("completions/clipped_ratio"):
            found = "no completion that ends within rl.max_completion_length tokens"
            fix = "raise it, or set rl.mask_truncated to false"
        elif always("frac_reward_zero_std"):
            found = "no difference in reward within any group of completions"
            fix = "see which rewards can tell a group's completions apart: weights, guards, prompts"
        elif not moved:
            found = f"all weights as before training (learning rate {trainer.args.learning_rate})"
            fix = "raise the learning rate"
        if found:
            where, fix = f"{self.method}, {trainer.state.global_step} steps", f"{fix}. {self.output} was not written"
            raise UserError(where, found, "weights that training has changed", fix)


class Log(TrainerCallback):
    """Scores the development split at each checkpoint, keeps the best weights, and gathers the log.

    Created before the first step, whose weights are no result: a checkpoint that still holds them (a warm-up, or RL
    without a difference in reward so far) is worse than any later one, and a run that ends with them is an error.
    """

    def __init__(self, run: Run, loaded: Loaded, network):
        self.run, self.loaded, self.network = run, loaded, network
        self.file = run.folder / "dev_scores.json"
        self.scores = json.loads(self.file.read_text()) if self.file.is_file() else []
        last = self.scores[-1] if self.scores else {}
        self.earlier = {key: last.get(key, 0) for key in ("seconds", "processor_seconds")}
        weights = (p for p in network.parameters() if run.full or p.requires_grad)
        self.untrained = digests(weights) if is_main_process() else set()

    def seconds(self) -> float:
        """Wall-clock time of the run so far, over all legs of a resumed one."""
        return self.earlier["seconds"] + time.perf_counter() - self.run.started

    def best(self) -> dict:
        """The peak; the earliest of equals. Without development rows, the last checkpoint."""
        if self.scores[-1]["dev_score"] is None:
            return self.scores[-1]
        return max(self.scores, key=lambda s: (s.get("trained", True), s["dev_score"], -s["step"]))

    def on_train_begin(self, args, state, control, **kwargs):
        """Show a bar."""
        hidden = not state.is_world_process_zero
        options = {"desc": self.run.method, "unit": "step", "mininterval": 1, "disable": hidden}
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, **options)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        self.bar.close()

    def on_step_end(self, args, state, control, **kwargs):
        """Score the development split where a checkpoint is due."""
        step = state.global_step
        self.bar.update(step - self.bar.n)
        if step % self.run.params.train.eval_steps == 0 or step == state.max_steps:
            self.score_and_keep(step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the step's values beside the bar."""
        names = [name for name in ("loss", "reward", "rewards/accuracy/mean") if name in (logs or {})]
        shown = {LOGGED[name]: f"{float(logs[name]):.3f}" for name in names}
        if self.scores:
            shown["dev"] = self.scores[-1]["dev_score"]
        self.bar.set_postfix(shown, refresh=False)

    def score_and_keep(self, step: int) -> None:
        """Score the development split; keep the weights if they are the best so far, and delete worse ones."""
        # One process's score for all: GPUs may differ in a last bit, and all must agree to save, which is collective.
        (score,) = broadcast_object_list([self.dev_score()])
        self.scores = [score for score in self.scores if score["step"] < step]
        computed = self.earlier["processor_seconds"] + processor_seconds()
        spent = {"seconds": round(self.seconds(), 1), "processor_seconds": round(computed, 1)}
        self.scores.append({"step": step, "dev_score": score, **spent})
        if self.best()["step"] == step:
            folder = self.run.folder / f"best-{step}"
            (self.scores[-1]["trained"],) = broadcast_object_list([self.keep(folder)])
        if is_main_process():
            write_json(self.file, self.scores)
            for old in self.run.folder.glob("best-*"):
                if old.name != f"best-{self.best()['step']}":
                    shutil.rmtree(old)

    def keep(self, folder: Path) -> bool:
        """Write the weights and check what was written; returns whether training has changed them (main process)."""
        weights = None
        if self.loaded.shared:
            weights = gathered(self.network, trainable_only=not self.run.full)
        if not is_main_process():
            return False
        shutil.rmtree(folder, ignore_errors=True)
        if self.run.full:
            if weights:  # gathered one by one: tied weights are one tensor again, and saved once
                for name, source in self.network.all_tied_weights_keys.items():
                    weights[name] = weights[source]
            self.network.save_pretrained(folder / "full", state_dict=weights)
        else:  # without the reference's copy, which TRL makes of an adapter that is trained on
            self.network.save_pretrained(folder, selected_adapters=["default"], state_dict=weights)
        (folder / "README.md").unlink(missing_ok=True)
        return check_weights(folder, self.untrained)

    def dev_score(self) -> float | None:
        """Percent of development answers that are right under the reasoning prompt, decoded greedily."""
        run, network = self.run, self.network
        if not run.dev:
            return None
        root, decoding = Path(run.params.data.root), run.params.decoding
        requests = [Request(s.id, render(PROMPT, s.question), image_file(root, s.image)) for s in run.dev]
        training, cache = network.training, network.config.use_cache
        network.eval()
        network.config.use_cache = True
        # Every process scores all rows: with shared parameters (FSDP) none may be left out of a forward pass.
        batches = ask_all(replace(self.loaded, model=network), requests, decoding.batch_size, decoding.max_new_tokens)
        answers = {reply.id: read_completion(reply.text)[1] for batch in batches for reply in batch}
        network.config.use_cache = cache
        network.train(training)
        right = sum(is_right(answers[s.id], s.answers, s.kind, s.choices, s.question) for s in run.dev)
        return round(100 * right / len(run.dev), 2)

    def with_score(self, logs: dict, step: int) -> dict:
        """A step's values, with its development score if it has one."""
        scores = [score["dev_score"] for score in self.scores if score["step"] == step]
        return {**logs, "dev_score": scores[0]} if scores else logs

    def table(self, history: list[dict]) -> list[dict]:
        """One row a step, under our names."""
        rows = {}
        for entry in history:
            if values := named(entry):
                rows.setdefault(entry["step"], {"step": entry["step"]}).update(values)
        for score in self.scores:
            rows.setdefault(score["step"], {"step": score["step"]})["dev_score"] = score["dev_score"]
        return [rows[step] for step in sorted(rows)]
