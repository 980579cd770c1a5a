"""What is on the pages that tests look at? Readings of random choices, and profiles that were counted from them."""

from collections.abc import Sequence

import numpy as np

from moeut.analysis.page import PageModel, RouterProfile
from moeut.analysis.reading import Reading, RouterReading

SENTENCE = ("The", " quick", " brown", " fox", "\n", "    jumps", " over", " the", " lazy", " dog", ".", "\n")
HOSTILE = (
    "</script><script>window.hacked = 1</script>", "<img src=x onerror='window.hacked = 1'>", "<!--", "]]>", "&lt;",
    "\\", "\u2028", "\x00", "\u202e", '"', "'", "$title", "${alert(1)}",
)  # fmt: skip
NAMES = (("attention_value", 2, 3, 1), ("feed_forward", 1, 12, 4))
"""Routers: name, groups G, experts E in each, choices K."""


def reading(
    texts: Sequence[str] = SENTENCE * 5,
    *,
    num_layers: int = 6,
    group_size: int = 2,
    halting: bool = False,
    names: Sequence[tuple[str, int, int, int]] = NAMES,
    seed: int = 0,
) -> Reading:
    """A text of which each router makes something at random; of each group the last expert is never chosen.

    halting: after the first layer every third token chooses nobody.
    """
    random = np.random.default_rng(seed)
    routers = []
    for layer in range(group_size):
        depths = tuple(range(layer, num_layers, group_size))
        for name, groups, experts, choices in names:
            scores = random.random((len(texts), len(depths), groups, experts - 1))
            chosen = scores.argsort(axis=-1)[..., :choices]
            if halting:
                chosen[::3, [depth > 0 for depth in depths]] = experts
            routers.append(RouterReading(layer, name, depths, experts, chosen))
    return Reading(
        tuple(texts),
        random.exponential(3, len(texts)).astype(np.float32),
        num_layers,
        random.uniform(1, num_layers, len(texts)).astype(np.float32) if halting else None,
        tuple(routers),
    )


def profile(router: RouterReading) -> RouterProfile:
    """The choices of the text itself; the first expert of each group has two top tokens, the others have none."""
    one_hot = router.experts[..., None] == np.arange(router.num_experts)
    groups = router.experts.shape[2]
    top = [[[(" fox", 23.456), ("\n", 2.0)], *([()] * (router.num_experts - 1))] for _ in range(groups)]
    return RouterProfile(router.layer, router.name, one_hot.sum((0, 3)), top)


def model(read: Reading, name: str = "runs/mine") -> PageModel:
    """A model on the page."""
    return PageModel(name, read, [profile(router) for router in read.routers])
