"""Studies of the measures, which are no stages of the pipeline.

| module | what it does |
|---|---|
| `judges`, `peers` | the judges on labelled rows (`rarl study judges`) |
| `reasoning_texts`, `ranking`, `reasoning_reward` | the measures of the reasoning reward (`rarl study reward`) |
| `threshold` | the semantic judge's thresholds (`rarl study threshold`) |
| `clusters`, `families` | intervals and comparisons on simulated answers (`rarl study clusters`, `rarl study diff`) |
"""
