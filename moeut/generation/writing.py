"""How does a model write for us? As transformers generates, with a cache that grows, from any prompt."""

from typing import Any

import torch
from torch import Tensor

from moeut.generation.growing_cache import GrowingCache
from moeut.hf.modeling import CACHE_NAME, MoEUTForCausalLM


class Writer(MoEUTForCausalLM):
    """A model that is only to write, for `moeut generate` and `moeut serve`."""

    def generate(self, input_ids: Tensor, **settings: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As `transformers.GenerationMixin.generate`; a prompt without tokens begins a document.

        input_ids: [B, T]; settings: see there.
        """
        if input_ids.shape[1] == 0:
            input_ids = torch.full((len(input_ids), 1), self.config.bos_token_id, device=self.device)
            settings["attention_mask"] = torch.ones_like(input_ids)
        settings.setdefault(CACHE_NAME, GrowingCache(self.config.num_hidden_layers))
        return super().generate(input_ids, **settings)  # pyright: ignore[reportAttributeAccessIssue]
