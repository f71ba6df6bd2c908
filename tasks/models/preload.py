"""Imported once by the fork server: the libraries that every training stage needs and that load slowly."""

import trl.trainer.dpo_trainer
import trl.trainer.reward_trainer
import trl.trainer.sft_trainer  # noqa: F401
