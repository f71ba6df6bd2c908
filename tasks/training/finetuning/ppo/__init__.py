"""Proximal policy optimisation for language models: one file per step of the algorithm, `trainer.py` ties them."""
