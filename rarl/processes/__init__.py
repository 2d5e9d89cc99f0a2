"""Processes on one machine: starting several, forks, pinned kernels, stopping, status, and what they cost."""
