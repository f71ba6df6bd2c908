from __future__ import annotations

from dataclasses import dataclass

import pytest

from data_contracts.errors import ParamsError
from tasks.models.trainer_args import check_trainer_args


@dataclass
class Config:
    adam_beta2: float = 0.999
    output_dir: str = ""


def test_known_arguments_pass() -> None:
    check_trainer_args(Config, {"adam_beta2": 0.95}, "reward.trainer_args", {"output_dir": "set elsewhere"})
    check_trainer_args({"a", "b"}, {"b": 1}, "here")


def test_unknown_arguments_name_the_nearest() -> None:
    with pytest.raises(
        ParamsError, match=r"reward\.trainer_args: no argument 'adam_beta_2', did you mean 'adam_beta2'"
    ):
        check_trainer_args(Config, {"adam_beta_2": 0.95}, "reward.trainer_args")
    with pytest.raises(ParamsError, match="no argument 'zzz' "):
        check_trainer_args(Config, {"zzz": 1}, "here")


def test_owned_arguments_say_what_to_do_instead() -> None:
    with pytest.raises(ParamsError, match="'output_dir' cannot be set here: remove it"):
        check_trainer_args(Config, {"output_dir": "x"}, "here", {"output_dir": "remove it"})
