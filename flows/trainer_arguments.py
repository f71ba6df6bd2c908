"""TRL's own arguments in params, checked before anything starts."""

from __future__ import annotations

from flows.params import Params


def check_trainer_arguments(params: Params) -> None:
    """Raise `ParamsError` for `trainer_args` that TRL does not know (naming the nearest that it does) or refuses.

    Only TRL can tell, and importing it takes seconds: sections without such arguments are not looked at.
    """
    if params.reference.sft.trainer_args:
        from tasks.finetuning import sft

        sft.check_params(params.reference.sft)
    if params.reward.trainer_args:
        from tasks.rewards import bradley_terry

        bradley_terry.check_params(params.reward)
    if getattr(params.finetune, params.finetune.method).trainer_args:
        from tasks.finetuning.methods import METHODS

        METHODS[params.finetune.method].check(params.finetune)
