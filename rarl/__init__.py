"""RARL: reasoning-aware reinforcement learning for small medical vision-language models."""
