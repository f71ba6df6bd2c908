import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_contracts.errors import ArtifactError
from tasks.evaluation import plots


def size(path):
    """Width and height in pixels from the PNG header."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def test_curves_are_read_by_name_with_their_steps(tmp_path):
    lines = [
        {"step": 5, "loss": 2.0, "epoch": 0.1},
        {"step": 10, "loss": 1.0, "eval_loss": 3, "note": "x"},
        {"loss": 0.5},
    ]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(orjson.dumps(line) for line in lines))
    found = plots._read_curves(tmp_path / "t.jsonl")
    assert found == {"loss": [(5.0, 2.0), (10.0, 1.0), (3.0, 0.5)], "eval_loss": [(10.0, 3.0)]}


def test_a_missing_curve_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.jsonl"):
        plots.training_curves({"reward": tmp_path / "none.jsonl"}, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_a_row_a_stage(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}')
    for count in (1, 3):
        plots.training_curves({str(n): tmp_path / "t.jsonl" for n in range(count)}, tmp_path / f"{count}.png")
    one, three = size(tmp_path / "1.png"), size(tmp_path / "3.png")
    assert one[0] == three[0]
    assert three[1] - one[1] == pytest.approx(2 * 2.3 * 120, abs=2)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=50))
def test_every_reward_falls_into_a_bar_and_few_values_each_have_their_own(values):
    found = np.array(values, dtype=float)
    edges = plots._bin_edges(found)
    counts, _ = np.histogram(found, edges)
    assert (np.diff(edges) > 0).all()
    assert counts.tolist() == np.unique(found, return_counts=True)[1].tolist()


def test_plots_of_nothing_and_of_constants_are_drawn(tmp_path):
    plots.reliability_diagram([], None, tmp_path / "empty.png")
    plots.reward_distribution({"judge": (np.zeros(3), np.zeros(3))}, tmp_path / "constant.png")
    assert min(*size(tmp_path / "empty.png"), *size(tmp_path / "constant.png")) > 300


def test_other_data_give_another_picture(tmp_path):
    for name, shift in (("a", 0.0), ("b", 1.0)):
        plots.reward_distribution({"judge": (np.arange(9.0) + shift, np.arange(9.0))}, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
