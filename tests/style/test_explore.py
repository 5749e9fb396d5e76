"""The traces of one problem out of a set."""
import pytest

from smoltraces.settings import InputError
from smoltraces.style.viewer import explore

ROWS = [{"id": i, "variant": variant, "trace": f"Wait, {i}.", "response": "7"}
        for i in "ab" for variant in ("ST", "SBS")]


def test_the_traces_of_a_problem_stand_side_by_side():
    assert [row.columns["id"] for row in explore(ROWS).rows] == ["a", "a"]
    picked = explore(ROWS, first="b")
    assert picked.titles == ["ST · b", "SBS · b"] and "<script" not in picked._repr_html_()
    assert "no trace" in explore([{"id": "a", "trace": None, "response": "7"}])._repr_html_()


def test_predictions_are_told_apart_by_what_differs():
    predictions = [{"problem_id": "p", "student": "s", "seed": seed, "output": "Wait."} for seed in range(3)]
    assert [label.split(" · ")[0] for label in explore(predictions).titles] == ["seed 0", "seed 1", "seed 2"]


@pytest.mark.parametrize(("rows", "names"), [([], "at least one"), (ROWS, "no id 'nowhere'")])
def test_what_is_not_there_is_said(rows, names):
    with pytest.raises(InputError, match=names): explore(rows, first="nowhere")
