"""Proximal policy optimisation for language models: one file a step of the algorithm, `trainer.py` ties them."""
