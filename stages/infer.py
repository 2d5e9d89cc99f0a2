"""Stage `infer`: ask one model every question of every test set, under each mode.

What was asked before is not asked again: predictions are kept by model, mode, set and decoding. Without a GPU the sets
are shared out among the cores.
"""

import time
from collections import Counter
from pathlib import Path

import click

from rarl.cache import answered
from rarl.entry import stage_main
from rarl.errors import warn
from rarl.launch import is_main_process, on_several_processes
from rarl.params import load_params
from rarl.predictions import Task, ask_sets, kept_in, model_key
from rarl.records import Sample, predictions_file, read_records, write_records


@click.command()
@click.option("--model", "name", required=True, help="Name of a folder below data/models.")
@stage_main
def main(name):
    params = load_params()
    if on_several_processes(params, "stages.infer", ["--model", name]):
        return
    folder = Path("data/models") / name
    started, total, faults, key = time.perf_counter(), 0, Counter(), model_key(folder)
    tasks = [
        Task(mode, test_set, read_records(params.samples_file(test_set), Sample), kept_in(key, params, mode, test_set))
        for mode in params.modes
        for test_set in params.sets_of(mode)
    ]  # fmt: skip
    if left := [task for task in tasks if not task.is_done()]:
        ask_sets(folder, params, left)
    if is_main_process():
        for task in tasks:
            done = answered(task.kept)
            predictions = [done[sample.id] for sample in task.samples]
            total += write_records(predictions_file(name, task.mode, task.test_set), predictions)
            faults.update(prediction.error for prediction in predictions if prediction.error)
        click.echo(f"infer {name}: {total} predictions in {time.perf_counter() - started:.1f} s")
        if faults:
            [(fault, _)] = faults.most_common(1)
            warn(f"{faults.total()} of {total} questions could not be asked, mostly: {fault}")


if __name__ == "__main__":
    main()
