"""The base model, π_ref, the reward model, and fine-tuning of the policy."""
