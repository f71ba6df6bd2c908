import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.data_contracts.errors import ArtifactError
from plumbline.tasks.evaluation.measures import plots


def size(path):
    """Width and height in pixels from the PNG header."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def test_a_missing_curve_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.jsonl"):
        plots.training_curves({"reward": tmp_path / "none.jsonl"}, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.training
def test_a_row_a_stage(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}')
    for count in (1, 3):
        plots.training_curves({str(n): tmp_path / "t.jsonl" for n in range(count)}, tmp_path / f"{count}.png")
    one, three = size(tmp_path / "1.png"), size(tmp_path / "3.png")
    assert one[0] == three[0]
    assert three[1] - one[1] == pytest.approx(2 * 2.3 * 120, abs=2)


@pytest.mark.training
def test_the_stages_of_a_stack_are_lines_of_their_own(tmp_path):
    rows = [b'{"step": 1, "loss": 2.0, "stage": "1-dpo"}', b'{"step": 2, "loss": 9.0, "stage": "2-ppo"}']
    (tmp_path / "stack.jsonl").write_bytes(b"\n".join(rows))
    (tmp_path / "one.jsonl").write_bytes(b"\n".join(row.replace(b"2-ppo", b"1-dpo") for row in rows))
    for name in ("stack", "one"):
        plots.training_curves({"policy": tmp_path / f"{name}.jsonl"}, tmp_path / f"{name}.png")
    assert (tmp_path / "stack.png").read_bytes() != (tmp_path / "one.png").read_bytes()


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=50))
def test_every_reward_falls_into_a_bar_and_few_values_each_have_their_own(values):
    found = np.array(values, dtype=float)
    edges = plots._bin_edges(found)
    counts, _ = np.histogram(found, edges)
    assert (np.diff(edges) > 0).all()
    assert counts.tolist() == np.unique(found, return_counts=True)[1].tolist()


@pytest.mark.training
def test_plots_of_nothing_and_of_constants_are_drawn(tmp_path):
    plots.reliability_diagram([], None, tmp_path / "empty.png")
    plots.reward_distribution({"judge": (np.zeros(3), np.zeros(3))}, tmp_path / "constant.png")
    assert min(*size(tmp_path / "empty.png"), *size(tmp_path / "constant.png")) > 300


def test_other_data_give_another_picture(tmp_path):
    for name, shift in (("a", 0.0), ("b", 1.0)):
        plots.reward_distribution({"judge": (np.arange(9.0) + shift, np.arange(9.0))}, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
