"""Do the groups cover every route once, in order, and within the scratch?"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moeut.experts import groups


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(1, 10))
def test_groups_cover_each_route_once(counts: list[int], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "_SCRATCH_BYTES", limit * 4)
        cut = groups.cut(torch.tensor([0, *counts]).cumsum(0), 1, torch.float32)
    assert all(0 < group.size == sum(group.sizes) <= limit for group in cut)
    position, rows, seen = 0, [0] * len(counts), set()
    for group in cut:
        assert group.span.start == position
        position = group.span.stop
        for expert, size, continued in zip(group.experts, group.sizes, group.continued, strict=True):
            assert continued == (expert in seen)
            seen.add(expert)
            rows[expert] += size
    assert rows == counts


def test_only_experts_too_large_for_a_group_are_cut() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "_SCRATCH_BYTES", 4 * 4)
        cut = groups.cut(torch.tensor([0, 3, 5, 5, 14, 15]), 1, torch.float32)
    assert [group.experts for group in cut] == [[0], [1], [3], [3], [3, 4]]
    assert [group.sizes for group in cut] == [[3], [2], [4], [4], [1, 1]]
    assert [group.continued for group in cut] == [[False], [False], [False], [True], [True, False]]
