"""Experiments of DVC: compare them, and run those that a study lacks.

| module | what it does |
|---|---|
| `revisions` | what git and DVC keep of an experiment or a commit |
| `runs`, `diff` | scores side by side, with paired tests (`rarl compare runs`, `rarl diff`) |
| `power` | the smallest difference that a comparison can show |
| `sweeps` | tables over experiments (`rarl compare`, `rarl study`) |
| `designs`, `announcements` | which experiments a study has, and what it says before it starts |
| `running`, `dvc_queue`, `progress` | running them through DVC's queue |
"""
