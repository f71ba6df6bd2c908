"""Stage `sample_world`: generate the embedded world, or note that this run does not use it."""

from __future__ import annotations

from plumbline.tasks.params.sample_world import SampleWorldParams
from plumbline.tasks.pipeline.stage import Facts, Stage, StageContext


def make_sample_world(context: StageContext, *, seed: int, sample_world: SampleWorldParams) -> Facts:
    """Write raw feedback, demonstrations and the record of planted defects."""
    if not sample_world.enabled:
        return {"enabled": False}
    from plumbline.tasks.data.sample_world.generate import generate

    return {"enabled": True, **generate(sample_world, seed, context.folder)}


STAGE = Stage(
    name="sample_world",
    title="Sample world",
    body=make_sample_world,
    deps={},
    params=("seed", "sample_world"),
    out="data/world",
    contract="sample_world",
)
