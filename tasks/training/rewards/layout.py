"""The files that make a folder one of a reward model. Every command reads these names, so no torch here."""

FACTS = "reward.json"
"""Beside the weights: max_length (tokens), mean and standard deviation of rewards on training responses."""

HELD_OUT = "held_out"
"""Folder of the held-out judge, in that of the reward model and in that of its work."""
