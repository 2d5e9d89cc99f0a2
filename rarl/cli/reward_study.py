"""How well each measure of the reasoning reward tells right reasoning from wrong (no pipeline stage).

The paper names a reasoning reward without a formula. Here texts about phantoms, whose findings are
known, are scored by each measure that `reward.reasoning` can name. Rule, set before the first run:
the measure is favoured whose right texts most often score above every wrong text of their question;
it is clearly better than BERTScore, which the paper profile uses, if the 95 % interval of the gain
over the same questions lies above 0, and no kind of wrong text is told apart less well (AUC, with
an interval of the gain below 0).

Writes `metrics/studies/reasoning_reward.json` and `.md`, in a minute or two on two cores.
"""

from pathlib import Path

import click

from rarl.entry import stage_main
from rarl.errors import UserError
from rarl.params import load_params
from rarl.records import write_json

OUTPUT = Path("metrics/studies/reasoning_reward.json")


@click.command(help=__doc__)
@click.option("--cases", "count", default=600, show_default=True, type=click.IntRange(20))
@click.option("--seed", default=20, show_default=True, help="Of the questions and the bootstrap.")
@click.option("--output", default=OUTPUT, show_default=True, type=click.Path(path_type=Path))
@stage_main
def main(count: int, seed: int, output: Path) -> None:
    from rarl.rewards.bertscore import BertScorer
    from rarl.studies.reasoning import as_markdown, study
    from rarl.studies.retelling import make_cases

    params = load_params()
    if seed in (params.phantom.seed, params.phantom.test_seed):
        raise UserError(
            "--seed",
            f"{seed}, which draws the pipeline's own phantoms",
            "a seed of the study's own",
            "take another number",
        )
    scorer = BertScorer(params.encoder.source, params.encoder.num_layers, device="cpu")
    report = study(make_cases(seed, count), scorer, params.reward.terms_share, seed)
    seconds = report.pop("seconds_per_1000_pairs")  # of this machine: not for a file in git
    write_json(output, report)
    command = f"rarl study reward --cases {count} --seed {seed}"
    text = as_markdown(report, command, params.encoder.source)
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    times = ", ".join(f"{name} {value:g} s" for name, value in seconds.items())
    click.echo(f"reward_study: 1,000 pairs take {times}")
    click.echo(f"reward_study: favours {report['favoured']} ({output.with_suffix('.md')})")
