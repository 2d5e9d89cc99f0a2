"""Studies that are not stages of the pipeline.

| module | what it does |
|---|---|
| `experiments` | what git and DVC keep of an experiment |
| `sweeps`, `runs` | tables over experiments (`rarl compare`) |
| `reasoning_texts`, `ranking`, `reasoning_reward` | the measures of the reasoning reward (`rarl study reward`) |
| `threshold` | the semantic judge's thresholds (`rarl study threshold`) |
"""
