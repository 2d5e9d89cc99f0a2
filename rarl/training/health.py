"""Warnings of `rarl/health.py` while a training runs, and the stop that `train.stop_when` asks for."""

from accelerate.utils import broadcast_object_list
from tqdm import tqdm
from transformers import TrainerCallback, TrainerState

from rarl.health import check, review


class HealthCallback(TrainerCallback):
    """Prints each warning once, at its step; a rule of `train.stop_when` ends the training there as its last step.

    Args:
        log: of the training (`rarl.training.run.Log`).
        steps: optimizer steps that are planned.
    """

    def __init__(self, log, steps: int):
        self.log, self.steps, self.method, self.rows, self.found = log, steps, log.run.method, [], set()
        self.stop_when = set(log.run.params.train.stop_when)

    def has_stopped(self, state: TrainerState) -> bool:
        """Read the log of a checkpoint; returns whether the training was stopped there."""
        rows = self.log.table(state.log_history)
        self.rows = [row for row in rows if row["step"] <= state.global_step]
        self.found = {finding.rule for finding in review(self.rows, self.steps)}
        return bool(self.found & self.stop_when)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Apply the rules to the step's values."""
        step = state.global_step
        row = next((row for row in self.log.table([{**(logs or {}), "step": step}]) if row["step"] == step), None)
        if row is None or (self.rows and self.rows[-1]["step"] == step):  # the trainer's summary after the last step
            return
        self.rows.append(row)
        for finding in check(self.rows, self.steps, self.found):
            self.found.add(finding.rule)
            if state.is_world_process_zero:
                tqdm.write(f"{self.method}: WARNING: {finding.describe(self.method)}")
        if not self.stop_when or step == self.steps:
            return
        # All processes must agree, because scoring and saving are collective.
        (stop,) = broadcast_object_list([bool(self.found & self.stop_when)])
        if stop:
            if not self.log.scores or self.log.scores[-1]["step"] != step:
                self.log.score_and_keep(step)
            control.should_save = control.should_training_stop = True
