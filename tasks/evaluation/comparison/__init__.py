"""Comparing variants of fine-tuning: what is compared, what it cost, which one to take; and self-play."""
