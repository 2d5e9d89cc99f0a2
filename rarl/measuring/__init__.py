"""Measurements of the project itself: speed against the stock libraries, and equal bits across processors."""
