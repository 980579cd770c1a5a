"""What do the official models compute? Once more, from the meaning of a case's `semantic` entry, without any routing.

Every expert is computed for every token and multiplied by a gate, most often zero; rotations are complex numbers;
softmax is written out. Weights have the training code's names; nothing of the package is used.

Letters: b batch, t and s query and key positions, h heads, e experts, k selected, d hidden size, p head size.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Semantic = Mapping[str, Any]
Weights = Mapping[str, Tensor]


def normalise(x: Tensor, weights: Weights | None, name: str = "") -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    result = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return result if weights is None else result * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def softmax(scores: Tensor) -> Tensor:
    exponentials = (scores - scores.max(-1, keepdim=True).values).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def best(scores: Tensor, k: int) -> Tensor:
    """1 at the k largest of the last dimension."""
    return (scores >= scores.sort(-1, descending=True).values[..., k - 1 : k]).to(scores.dtype)


def entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.log()).sum(-1)


class Case:
    """One model: its meaning, its weights, and what the routers and halting of one pass leave behind."""

    def __init__(self, semantic: Semantic, weights: Weights) -> None:
        self.semantic = semantic
        self.weights = weights
        self.scores: dict[tuple[int, str], list[tuple[Tensor, Tensor]]] = {}
        self.sut: dict[tuple[int, str], list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
        self.expected_depths: list[Tensor] = []

    def layer_weights(self, index: int) -> Weights:
        prefix = f"unique_layers.{index}."
        inside = {name.removeprefix(prefix): value for name, value in self.weights.items() if name.startswith(prefix)}
        return {name.removeprefix("mod."): value for name, value in inside.items()}

    def logits(self, ids: Tensor) -> Tensor:
        x = self.weights["embedding.weight"][ids] * self.semantic["embedding_scale"]
        if self.semantic["input_norm"]:
            x = normalise(x, None)
        x = self.with_halting(x) if self.semantic.get("act") else self.straight(x)
        if self.semantic["output_norm"]:
            x = normalise(x, self.weights, "out_norm")
        return x @ self.weights["output.weight"].T + self.weights["output.bias"]

    def straight(self, x: Tensor) -> Tensor:
        for index in self.semantic["layer_order"]:
            x = self.layer(index, x, x, None)
        return x

    def with_halting(self, x: Tensor) -> Tensor:
        least = 1 - self.semantic["halting_threshold"]
        h = result = x
        mixed, remaining, depth = torch.zeros_like(x), x.new_ones(x.shape[:2]), x.new_zeros(x.shape[:2])
        for n, index in enumerate(self.semantic["layer_order"]):
            if n == 0:
                h = result = self.layer(index, x, x, None)
                continue
            w = self.layer_weights(index)
            hidden = h @ w["_gate.0.weight"].T + w["_gate.0.bias"]
            hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
            go_on, stop = softmax(hidden @ w["_gate.3.weight"].T).unbind(-1)
            mixed = mixed + (remaining * stop)[..., None] * h
            depth = depth + (n - 1) * remaining * stop
            remaining = remaining * go_on
            alive = remaining * (remaining >= least)
            h = self.layer(index, h, result, alive)
            result = torch.where(alive[..., None] < least, result, mixed + alive[..., None] * h)
            self.expected_depths.append(depth + n * alive)
        return result

    def layer(self, index: int, x: Tensor, source: Tensor, alive: Tensor | None) -> Tensor:
        norm, w = self.semantic["norm"], self.layer_weights(index)
        first, second = next(
            (one, two)
            for one, two in (
                ("norm1", "norm2"), ("self_attn.norm", "pkm.norm"), ("self_attn_layer_norm", "final_layer_norm")
            )
            if f"{one}.weight" in w
        )  # fmt: skip
        scored = {
            "peri": lambda y: normalise(y, w, first),
            "pre": lambda y: normalise(y, w, first),
            "post": lambda y: y,
        }
        plain = {"peri": lambda y: y, "pre": scored["pre"], "post": lambda y: y}
        x = x + self.attention(
            index, w, scored[norm](x), scored[norm](source), plain[norm](x), plain[norm](source), alive
        )
        if norm == "post":
            x = normalise(x, w, first)
        read = x if norm == "post" else normalise(x, w, second)
        x = x + self.feed_forward(index, w, read, x if norm == "peri" else read, alive)
        return normalise(x, w, second) if norm == "post" else x

    # Attention.

    def attention(
        self, index: int, w: Weights, x: Tensor, source: Tensor, plain: Tensor, plain_source: Tensor,
        alive: Tensor | None,
    ) -> Tensor:  # fmt: skip
        kind = self.semantic["attention"]
        if kind == "sut_moa":
            return self.attention_experts(index, w, x, source, plain_source, alive)
        heads = self.semantic["n_heads"]
        if kind == "switchhead":
            q, k = (
                (y @ w[f"self_attn.projections.{name}"].T).unflatten(-1, (heads, -1))
                for y, name in ((x, "q"), (source, "k"))
            )
            gates_v = self.switchhead_gates(index, "v", source, w, None)
            gates_o = self.switchhead_gates(index, "o", x, w, alive)
            experts_v, experts_o = (w[f"self_attn.projections.{name}"].unflatten(0, (heads, -1)) for name in "vo")
            v = torch.einsum("bshe,bsd,hedp->bshp", gates_v, plain_source, experts_v)
            context = torch.einsum("bhts,bshp->bthp", self.rotary_attention(q, k), v)
            return torch.einsum("bthe,bthp,hepd->btd", gates_o, context, experts_o)
        keys, values = w["self_attn.data_to_kv.weight"].chunk(2)
        q = (x @ w["self_attn.data_to_q.weight"].T).unflatten(-1, (heads, -1))
        k, v = ((y @ m.T).unflatten(-1, (heads, -1)) for y, m in ((source, keys), (plain_source, values)))
        context = torch.einsum("bhts,bshp->bthp", self.rotary_attention(q, k), v)
        return context.flatten(2) @ w["self_attn.out_proj.weight"].T

    def switchhead_gates(self, index: int, name: str, x: Tensor, w: Weights, alive: Tensor | None) -> Tensor:
        scores = (x @ w[f"self_attn.selections.{name}"].T).unflatten(-1, (self.semantic["n_heads"], -1))
        weight = self.note(index, f"attention_{name}", scores, alive)
        chosen = best(scores, self.semantic["att_k"]) * (weight > 0)[..., None, None]
        if self.semantic["att_selection"] == "sigmoid":
            return chosen / (1 + (-scores).exp())
        exponentials = best(scores, self.semantic["att_k"]) * scores.exp()
        return chosen * exponentials / exponentials.sum(-1, keepdim=True)

    def note(self, index: int, name: str, scores: Tensor, alive: Tensor | None) -> Tensor:
        """Keep scores [b, t, h, e] for the balance term; how much each token counts there."""
        weight = scores.new_ones(scores.shape[:2]) if alive is None else alive
        self.scores.setdefault((index, name), []).append((scores, weight))
        return weight

    def rotary_attention(self, q: Tensor, k: Tensor) -> Tensor:
        """Attention weights [b, h, t, s] of queries and keys [b, t, h, p]."""
        half, length = self.semantic["n_rotate"] // 2, q.shape[1]
        frequency = self.semantic["rope_base"] ** -(torch.arange(half, dtype=torch.float64) / max(half, 1))
        turn = torch.polar(torch.ones(length, half).double(), torch.arange(length).double()[:, None] * frequency)

        def rotate(y: Tensor) -> Tensor:
            turned = torch.complex(y[..., :half], y[..., half : 2 * half]) * turn[:, None]
            return torch.cat([turned.real, turned.imag, y[..., 2 * half :]], -1)

        scores = torch.einsum("bthp,bshp->bhts", rotate(q), rotate(k)) / math.sqrt(q.shape[-1])
        return softmax(scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf))

    def attention_experts(
        self, index: int, w: Weights, x: Tensor, source: Tensor, plain_source: Tensor, alive: Tensor | None
    ) -> Tensor:
        heads, size, length = self.semantic["att_heads_per_expert"], self.semantic["d_head"], x.shape[1]
        gates = self.sut_gates(index, "attention", "self_attn.q_proj.", x, w, self.semantic["att_k"], alive)
        q = torch.einsum("btd,edx->btex", x, w["self_attn.q_proj.experts.w"]).unflatten(-1, (heads, size))
        k, v = (
            (y @ w[f"self_attn.{name}.weight"].T).unflatten(-1, (heads, size))
            for y, name in ((source, "k_proj"), (plain_source, "v_proj"))
        )
        farthest = self.semantic["max_relative_positions"]
        place = torch.arange(length)
        index_of = (place[None] - place[:, None]).clamp(1 - farthest, farthest - 1) + farthest
        relative = w["self_attn.rel_pos_emb"][:, :, index_of]  # [h, p, t, s]
        scores = torch.einsum("btehp,bshp->behts", q, k) / math.sqrt(size)
        scores = scores + torch.einsum("btehp,hpts->behts", q, relative) / size**0.25
        attention = softmax(scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf))
        context = torch.einsum("behts,bshp->btehp", attention, v).flatten(-2)
        return torch.einsum("bte,btex,exd->btd", gates, context, w["self_attn.q_proj.output_experts.w"])

    # Feed-forward.

    def feed_forward(self, index: int, w: Weights, scored: Tensor, x: Tensor, alive: Tensor | None) -> Tensor:
        kind = self.semantic["ffn"]
        if kind == "sut_moe":
            gates = self.sut_gates(index, "ffn", "moe.", scored, w, self.semantic["ffn_k"], alive)
            hidden = torch.einsum("btd,eds->btes", x, w["moe.experts.w"]) + w["moe.experts.b"]
            out = torch.einsum("btes,esd->bted", hidden.clamp(min=0), w["moe.output_experts.w"])
            return torch.einsum("bte,bted->btd", gates, out + w["moe.output_experts.b"])
        if kind == "sigma_moe":
            scores = scored @ w["pkm.expert_sel"].T + w.get("pkm.sel_bias", torch.zeros(()))
            weight = self.note(index, "ffn", scores.unsqueeze(-2), alive)
            shares = 1 / (1 + (-scores).exp()) if self.semantic["ffn_selection"] == "sigmoid" else softmax(scores)
            gates = shares * best(scores, self.semantic["ffn_k"]) * (weight > 0)[..., None]
            hidden = torch.einsum("btd,eds->btes", x, w["pkm.keys"])
            if "pkm.bias" in w:
                hidden = hidden + w["pkm.bias"]
            out = torch.einsum("bte,btes,esd->btd", gates, hidden.clamp(min=0), w["pkm.values"])
            return out + w.get("pkm.o_bias", torch.zeros(()))
        hidden = (x @ w["linear1.weight"].T + w["linear1.bias"]).clamp(min=0)
        return hidden @ w["linear2.weight"].T + w["linear2.bias"]

    def sut_gates(
        self, index: int, part: str, prefix: str, x: Tensor, w: Weights, k: int, alive: Tensor | None
    ) -> Tensor:
        hidden = torch.tanh(x @ w[f"{prefix}w_gate.0.weight"].T + w[f"{prefix}w_gate.0.bias"])
        scores = hidden @ w[f"{prefix}w_gate.3.weight"].T
        probabilities = softmax(scores)
        weight = x.new_ones(x.shape[:2]) if alive is None else alive
        kept = probabilities * (weight > 0)[..., None]
        gates = kept * best(scores, k)
        gates = gates / (gates.sum(-1, keepdim=True) + 1e-6)
        self.sut.setdefault((index, part), []).append((weight, kept, probabilities, gates))
        return gates

    # What training adds to the loss.

    def regulariser(self) -> Tensor:
        terms, wanted = [torch.zeros(()).double()], self.semantic["regulariser"] or {}
        for (_, name), applications in self.scores.items():
            part = name.split("_")[0]
            if wanted.get(part):
                probabilities = torch.stack([softmax(scores) for scores, _ in applications])
                weights = torch.stack([weight for _, weight in applications])
                terms.append(wanted[part] * self.balance(part, probabilities, weights))
        for applications in self.sut.values():
            statistics = [torch.cat([y.flatten(0, 1) for y in x]) for x in zip(*applications, strict=True)]
            terms += self.sut_losses(wanted, statistics)
        terms += [(wanted.get("act") or 0.0) * depth.mean() for depth in self.expected_depths]
        return torch.stack(terms).sum()

    def balance(self, part: str, probabilities: Tensor, weights: Tensor) -> Tensor:
        """probabilities: [application, b, t, h, e]; weights: [application, b, t]."""

        def mean(*over: int) -> Tensor:
            counted = (probabilities * weights[..., None, None]).sum(over)
            return counted / weights.sum(over)[..., None, None]

        match self.semantic["regulariser"].get("mode", "layers_time"):
            case "layers_time":
                return -entropy(mean(0, 2)).mean()
            case "global":
                return -entropy(mean(0, 1, 2)).mean()
            case "time":
                each = -entropy(mean(2)).mean((1, 2))
                return each.sum() if part == "ffn" else each.mean()
            case other:
                raise ValueError(other)

    def sut_losses(self, wanted: Semantic, statistics: list[Tensor]) -> list[Tensor]:
        """As the official code has them; statistics: weight, probabilities and gates of every token in every layer."""
        weight, kept, probabilities, gates = statistics
        weight = weight / weight.sum() if self.semantic.get("act") else weight / probabilities.numel()
        marginal = (weight[:, None] * kept).sum(0)
        conditional = -(weight[:, None] * kept * probabilities.log()).sum()
        share = gates.sum(0) / gates.sum()
        frequency = (gates > 0).double().sum(0)
        frequency = frequency / frequency.sum()
        variance = (share - share.mean()).square().sum() / max(len(share) - 1, 1)
        variation = variance / (share.mean().square() + 1e-10)
        switch = len(share) * (kept.sum(0) / kept.sum() * frequency).sum()
        losses = {"mutual_information": conditional + entropy(marginal), "cv": variation, "switch": switch}
        return [wanted[name] * loss for name, loss in losses.items() if wanted.get(name)]
