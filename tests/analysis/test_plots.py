"""Do figures show what they were given, in the order and with the names that belong to it, at a column's width?"""

import io
from typing import Any

import numpy as np
import pytest

from moeut.analysis import plots
from moeut.analysis.plots import COLUMN_INCHES, NEVER, Panel

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'moeut[plot]'")
NAN = float("nan")


def images(figure: Any) -> list[Any]:
    """The heat maps of a figure, without its colour bar."""
    return [axes.images[0] for axes in figure.axes if axes.images]


def curves(figure: Any, number: int = 0) -> list[Any]:
    """The curves of one of a figure's axes."""
    return figure.axes[number].get_lines()


def drawn(figure: Any) -> bytes:
    """A figure as a picture; whatever cannot be drawn fails here."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=60)
    return file.getvalue()


def test_experts_are_drawn_in_the_papers_order_and_dead_ones_grey():
    preference = np.array([[0.1, 0.9, NAN], [0.9, 0.1, NAN]])
    figure = plots.experts_across_depth([[Panel("mine", preference, [1, 3])]])
    [image] = images(figure)
    shown = image.get_array()
    assert shown[:, :2].tolist() == [[0.9, 0.1], [0.1, 0.9]]
    assert shown.mask.tolist() == [[False, False, True]] * 2
    axes = image.axes
    assert axes.get_title() == "mine (1 never used, grey)"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "3"]
    from matplotlib.colors import to_hex

    assert to_hex(axes.get_facecolor()) == NEVER
    assert image.norm.vmin == 0
    assert image.norm.vmax == 0.9
    assert drawn(figure).startswith(b"\x89PNG")


def test_panels_share_a_scale_and_may_be_missing():
    small, large = np.full((2, 3), 0.1), np.full((2, 3), 0.5)
    figure = plots.experts_across_depth(
        [
            [Panel("a, layer 0", small, [0, 1]), Panel("b, layer 0", large, [0, 2])],
            [None, Panel("b, layer 1", large, [1, 3])],
        ]
    )
    assert {image.norm.vmax for image in images(figure)} == {0.5}
    assert [image.axes.get_title() for image in images(figure)] == ["a, layer 0", "b, layer 0", "b, layer 1"]
    assert [bool(image.axes.get_xlabel()) for image in images(figure)] == [True, False, True]
    assert figure.get_size_inches()[0] == pytest.approx(2 * COLUMN_INCHES)
    drawn(figure)


def test_matrices_have_numbers_while_they_are_small():
    matrix = np.array([[1, NAN], [NAN, 1]])
    figure = plots.similarity_between_depths([[Panel("", matrix, [0, 1])]], "IoU")
    [image] = images(figure)
    assert [text.get_text() for text in image.axes.texts] == ["1.00", "–", "–", "1.00"]
    large = plots.similarity_between_depths([[Panel("", np.eye(10), range(10))]], "IoU")
    assert not images(large)[0].axes.texts
    negative = plots.similarity_between_depths([[Panel("", np.array([[1, -0.5], [-0.5, 1]]), [0, 1])]], "cosine")
    assert images(negative)[0].norm.vmin == -0.5
    nothing = plots.similarity_between_depths([[Panel("", np.full((2, 2), NAN), [0, 1])]], "IoU")
    assert images(nothing)[0].norm.vmin == 0
    for one in (figure, large, negative, nothing):
        drawn(one)


def test_lifts_are_logarithms_that_end():
    """Expert 0 belongs to the second place, expert 1 to the first, and comes first."""
    lift = np.array([[0, 8.0, 1], [4.0, 0.5, 1]])
    figure = plots.lift_by_place([[Panel("", lift, ["early", "late"])]], "place")
    [image] = images(figure)
    assert image.get_array().tolist() == [[2, 0, -2], [-1, 0, 2]]
    assert drawn(figure)


def test_curves_of_distinct_experts():
    distinct = np.array([[3, 0, 1], [0, 0, 0], [2, 2, 2]])
    figure = plots.distinct_by_rank([Panel("mine", distinct, [0, 1, 2])])
    lines = curves(figure)
    assert [line.get_ydata().tolist() for line in lines] == [[1, 3], [], [2, 2, 2]]
    assert [line.get_label() for line in lines] == ["0", "1", "2"]
    many = plots.distinct_by_rank([Panel("mine", np.ones((18, 2000), np.int64), range(18))])
    assert [line.get_label() for line in curves(many)] == ["0", "4", "8", "12", "16"]
    assert {len(line.get_ydata()) for line in curves(many)} == {1000}
    drawn(figure)


def test_usage_is_relative_to_even_use():
    figure = plots.usage_by_rank([Panel("mine", np.array([[0, 6, 2, 0], [2, 2, 2, 2]]), [0, 1])])
    first, second, _ = curves(figure)
    assert first.get_ydata().tolist() == [3, 1]
    assert first.get_xdata().tolist() == [25, 50]
    assert second.get_ydata().tolist() == [1, 1, 1, 1]
    drawn(figure)


def test_several_models_in_one_picture():
    norm, update, relative = np.array([1.0, 2, 4]), np.array([1.0, 2]), np.array([1.0, 1])
    figure = plots.update_sizes({"a": (norm, update, relative), "b": (norm, update, relative)})
    assert [len(axes.get_lines()) for axes in figure.axes] == [6, 2]
    drawn(figure)
    lens = plots.logit_lens({"a": np.array([9.0, 3]), "b": np.array([9.0, 4, 2])})
    assert [line.get_ydata().tolist() for line in curves(lens)] == [[9, 3], [9, 4, 2]]
    drawn(lens)
    halting = plots.halting_depths({"a": np.array([1, 3])})
    steps: Any = halting.axes[0].patches[0]
    assert steps.get_data().values.tolist() == [25, 75]
    drawn(halting)


def test_tokens_share_of_their_experts():
    figure = plots.distinct_by_token([[Panel("", np.array([[1, 0.5]]), [0])]])
    assert images(figure)[0].get_array().tolist() == [[1, 0.5]]
    drawn(figure)


def test_what_is_chosen_is_spread():
    assert list(plots.spread(18, 5)) == [0, 4, 8, 12, 16]
    assert list(plots.spread(2, 5)) == [0, 1]
    assert list(plots.spread(1, 5)) == [0]


def test_without_matplotlib_one_line_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="plots need matplotlib"):
        plots.logit_lens({"a": np.array([1.0])})


def test_logarithmic_scales_begin_and_end_with_powers_of_ten():
    figure = plots.usage_by_rank([Panel("mine", np.array([[30, 2, 1, 1]]), [0])])
    assert figure.axes[0].get_ylim() == pytest.approx((0.1, 10))
    nothing = plots.usage_by_rank([Panel("mine", np.zeros((1, 3), np.int64), [0])])
    for one in (figure, nothing):
        drawn(one)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert {"0.1", "1", "10"} <= set(labels)
    assert not any(label.get_text() for label in figure.axes[0].get_yticklabels(minor=True))
