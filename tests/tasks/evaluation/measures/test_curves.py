import orjson
import pytest

from plumbline.data_contracts.errors import ArtifactError
from plumbline.tasks.evaluation.measures.curves import Span, read_training


def write(path, lines):
    path.write_bytes(b"\n".join(orjson.dumps(line) for line in lines))
    return path


def test_curves_are_read_by_name_with_their_steps(tmp_path):
    lines = [
        {"step": 5, "loss": 2.0, "epoch": 0.1},
        {"step": 10, "loss": 1.0, "eval_loss": 3, "note": "x"},
        {"loss": 0.5},
    ]
    found = read_training(write(tmp_path / "t.jsonl", lines))
    assert found.curves == {"loss": [(5.0, 2.0), (10.0, 1.0), (3.0, 0.5)], "eval_loss": [(10.0, 3.0)]}
    assert (found.spans, found.boundaries, found.on_policy) == ((), [], False)
    assert list(found.pieces("loss")) == [found.curves["loss"]]


def test_a_stack_is_cut_between_its_stages(tmp_path):
    """DPO's steps 5 and 10, PPO's 14 and 18: the boundary lies between 10 and 14."""
    lines = [
        {"step": 5, "loss": 0.6, "stage": "1-dpo"},
        {"step": 10, "loss": 0.5, "stage": "1-dpo"},
        {"step": 14, "loss": 0.1, "response_tokens": 9.0, "stage": "2-ppo"},
        {"step": 18, "loss": 0.2, "response_tokens": 8.0, "stage": "2-ppo"},
    ]
    found = read_training(write(tmp_path / "t.jsonl", lines))
    assert found.spans == (Span("1-dpo", 5, 10), Span("2-ppo", 14, 18))
    assert found.boundaries == [12]
    assert list(found.pieces("loss")) == [[(5, 0.6), (10, 0.5)], [(14, 0.1), (18, 0.2)]]
    assert list(found.pieces("response_tokens")) == [[(14, 9.0), (18, 8.0)]]
    assert found.on_policy


def test_what_is_no_curve_is_an_artifact_error(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b"{")
    for name in ("t.jsonl", "none.jsonl"):
        with pytest.raises(ArtifactError, match=name):
            read_training(tmp_path / name)
