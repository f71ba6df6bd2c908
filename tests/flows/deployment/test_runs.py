"""`plumbline run --wait` ends as the command in the run would have ended."""

from __future__ import annotations

import pytest
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Crashed, Failed

from plumbline.data_contracts.errors import CheckFailed, ContractViolation, ParamsError, PlumblineError, StageError
from plumbline.flows.deployment.deployments import REJECTED
from plumbline.flows.deployment.runs import require_good_end
from plumbline.flows.fresh import NOT_STARTED

RAISED = "Flow run encountered an exception:"


@pytest.mark.parametrize(
    ("state", "kind", "code"),
    [
        (Completed(name=REJECTED, message="models:/assistant/2 (rejected by the gate)"), CheckFailed, 1),
        (Failed(message=f"{RAISED} ContractViolation: too much is set aside"), ContractViolation, 1),
        (Failed(message=f"{RAISED} ParamsError: seed: unknown"), ParamsError, 2),
        (Failed(message=f"{RAISED} StageError: stage reward: killed"), StageError, 3),
        (Failed(message=f"{RAISED} ValueError: what"), StageError, 3),
        (Failed(message=f"{RAISED} annotations: what"), StageError, 3),
        (Crashed(message="its process is gone"), StageError, 3),
        (Cancelled(), StageError, 3),
    ],
)
def test_a_run_that_was_waited_for_gives_its_exit_code(
    state: State[None], kind: type[PlumblineError], code: int
) -> None:
    with pytest.raises(PlumblineError) as raised:
        require_good_end("retrain", state, None)
    assert (type(raised.value), raised.value.exit_code) == (kind, code)
    assert (state.message or "its log says why") in str(raised.value)


def test_a_good_end_raises_nothing() -> None:
    require_good_end("retrain", Completed(), None)
    require_good_end("poll-freshness", Completed(name=NOT_STARTED, message="nothing is due"), None)
