"""Judges that rank candidates: rules, a reward model, a language model."""
