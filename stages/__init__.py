"""RARL: reasoning-aware reinforcement learning for small medical vision-language models.

One module at this level per DVC stage; the library they call lies in the folders beside them.
"""
