"""Is the dense MLP the formula it states?"""

import torch
from torch.testing import assert_close

from moeut.model.feedforward import MLP, MLPConfig
from moeut.model.initialise import InitialWeights
from moeut.model.surroundings import Inputs, Tokens


def test_mlp_is_two_linear_maps_around_a_relu():
    mlp = MLP(MLPConfig(intermediate_size=7), 5, InitialWeights("paper", 4, post_norm=False)).double()
    with torch.no_grad():
        for bias in (mlp.up_proj.bias, mlp.down_proj.bias):
            bias.normal_()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    unread = torch.full_like(x, torch.nan)
    y, selections = mlp(Inputs(unread, x), Tokens())
    hidden = torch.einsum("btd,fd->btf", x, mlp.up_proj.weight) + mlp.up_proj.bias
    expected = torch.einsum("btf,df->btd", hidden.clamp(min=0), mlp.down_proj.weight) + mlp.down_proj.bias
    assert_close(y, expected)
    assert selections == {}
