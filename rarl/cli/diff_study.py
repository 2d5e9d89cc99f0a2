"""Simulate the scores that `rarl diff` compares: false findings where nothing differs, power where a score does.

The results are metrics/studies/diff.json and diff.md (three minutes).
"""

from rarl.cli.cluster_study import simulation

main = simulation("diff", "rarl.studies.families", "families", 1000, "Simulated comparisons of a case.", __doc__)
