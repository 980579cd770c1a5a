"""How deep shall a trained model think? A shared layer can run more or less often than it did in training.

Not in the paper. Nothing is learnt for depths other than the trained one, so what it does to a model is to be measured.
"""

import torch

from moeut.model.language_model import LanguageModel


def with_repeats(model: LanguageModel, num_repeats: int) -> LanguageModel:
    """The same model with each layer run `num_repeats` times: its very parameters, not copies of them.

    It has as many executed layers as its cache has slots, so caches of another depth do not fit. Raises ValueError for
    a model that repeats nothing, and for a number below 1.
    """
    config = model.config
    if config.num_repeats == 1:
        raise ValueError(
            f"repeats: this model repeats none of its {config.num_hidden_layers:,} layers, so it has one depth only"
        )
    if num_repeats < 1:
        raise ValueError(f"repeats: a layer cannot run {num_repeats:,} times; say 1 or more")
    with torch.device("meta"):
        other = LanguageModel(config.with_repeats(num_repeats))
    other.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    return other.train(model.training)
