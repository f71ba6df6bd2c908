"""Stage `validate`: read every raw batch and hold it to the contract."""

from __future__ import annotations

from plumbline.tasks.data.feedback.validate import raw_batches, validate
from plumbline.tasks.data.feedback.withdrawals import load_withdrawals
from plumbline.tasks.params.feedback import FeedbackParams
from plumbline.tasks.pipeline.stage import Facts, Stage, StageContext

RAW = "data/raw"


def validate_feedback(context: StageContext, *, feedback: FeedbackParams) -> Facts:
    """Sort every raw row into accepted or quarantined, with a reason; what was withdrawn is set aside."""
    batches = [
        *raw_batches(context.dep("raw"), within=context.root),
        *raw_batches(context.dep("world") / "feedback", within=context.root),
    ]
    return validate(
        batches,
        feedback,
        context.folder,
        report_to=context.work,
        withdrawn=load_withdrawals(context.dep("raw")),
        skip_unreadable=True,
        progress=context.progress,
    )


STAGE = Stage(
    name="validate",
    title="Validate feedback",
    body=validate_feedback,
    deps={"raw": RAW, "world": "data/world"},
    params=("feedback",),
    out="data/validated",
    contract="validated_feedback",
)
