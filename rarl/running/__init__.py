"""How a stage runs: its start, the checks before it, work of later stages, watching it, and tidying up."""
