"""Stage `score`: one model's scores by every judge, each with its interval and counts."""

import click

from rarl.records import write_json
from rarl.running.entry import stage
from rarl.spreadsheet import write_frame


@stage
@click.option("--model", required=True, help="One of params.models.")
def main(params, model: str):
    """Write metrics/scores/<model>.json (mode -> test set -> judge -> scores) and metrics/breakdown/<model>.csv."""
    from rarl.reporting.scoring import breakdown, read_judged, score_model

    judged = read_judged(params, model)
    scores = score_model(judged, params)
    write_json(f"metrics/scores/{model}.json", scores)
    write_frame(f"metrics/breakdown/{model}.csv", breakdown(judged, params))
    for mode, sets in scores.items():
        cell = sets[params.own_test][params.report.main_judge]
        final = "not scored" if cell["final"] is None else f"{cell['final']:.1f} %"
        click.echo(f"score {model}, {mode}: own test {final} by {params.report.main_judge} (n = {cell['n']})")


if __name__ == "__main__":
    main()
