"""Rows that share a prompt: its tokens run once for all of them, in training and in generation."""
