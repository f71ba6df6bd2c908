"""Evaluation on held-out data, its statistics and plots, and the gate."""
