"""Count every split of every release in use, find what splits share, and write the data card.

Writes `metrics/audit.json` and, in `data/audit/`, `{shared_images,near_duplicates,refused}.csv` and
`data_card.{html,md}`; then stops if a release is not as declared, unless `data.deviation` is `report`.
"""

from rarl.running.entry import stage


@stage
def main(params) -> None:
    """Audit the releases and write the data card."""
    from rarl.data.data_card import audit

    audit(params)


if __name__ == "__main__":
    main()
