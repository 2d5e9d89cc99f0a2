"""What a run needs: memory, time, and what judges cost."""
