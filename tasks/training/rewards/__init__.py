"""The reward model: Bradley-Terry training, scoring and audit."""
