"""What does every variant promise? One function for each promise, called with a tiny configuration.

`test_variants.py` calls all of them on every variant. Computations of different shapes are compared in float64, because
in float32 their rounding may tip a top-k choice; docs/variants.md lists the exceptions. Defects are numbered in
docs/paper.md.

Letters: B batch, T tokens, N cached and new tokens, V vocabulary.
"""

import copy
import dataclasses
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from steps import (
    BATCH,
    EXPERT_PARAMETERS,
    LENGTH,
    all_cuts,
    assert_identical_step,
    assert_same_step,
    balance_bounds,
    build,
    gradients,
    in_chunks,
    tokens,
    train_step,
    used_experts,
    watch,
    without_batch_losses,
    without_dropout,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from moeut.model.cost import cost
from moeut.model.language_model import IGNORED_TARGET, LanguageModel, ModelConfig
from moeut.model.routing import Router
from moeut.model.softmax_routing import SoftmaxRouter

Promise = Callable[[ModelConfig], None]


def forward_runs(config: ModelConfig) -> None:
    """Finite logits [B, T, V]; the loss is cross entropy plus regulariser, each a number without dimensions."""
    inputs, targets = tokens(config)
    output = build(config)(inputs, targets)
    assert output.logits.shape == (BATCH, LENGTH, config.vocab_size)
    assert output.logits.isfinite().all()
    assert output.loss.shape == output.cross_entropy.shape == output.regulariser.shape == ()
    assert_close(output.loss, output.cross_entropy + output.regulariser)
    log_likelihood = output.logits.log_softmax(-1).gather(-1, targets[..., None])
    assert_close(output.cross_entropy, -log_likelihood.mean())


def gradients_reach_every_used_parameter(config: ModelConfig) -> None:
    """All gradients are finite and none is all zero; only experts that nobody chose get zeros."""
    model = build(config)
    inputs, targets = tokens(config)
    _, grads = train_step(model, inputs, targets)
    for name, gradient in grads.items():
        assert gradient.isfinite().all(), name
        assert gradient.count_nonzero() > 0, name
    torch.manual_seed(3)
    routing = model(inputs, return_routing=True).routing
    assert routing is not None
    for part, router, parameter in EXPERT_PARAMETERS:
        for index in range(config.group_size):
            name = f"stack.layers.{index}.{part}.{parameter}"
            if name in grads and router in routing[0]:
                depths = [depth for depth, layer in enumerate(config.schedule) if layer == index]
                unused = ~torch.stack([used_experts(routing[depth][router].experts, grads[name]) for depth in depths])
                assert grads[name][unused.all(0)].count_nonzero() == 0, name


def the_future_is_invisible(config: ModelConfig) -> None:
    """Another token at t leaves the logits before t as they were, and changes those at t."""
    model = build(config).eval()
    inputs, _ = tokens(config)
    before = model(inputs).logits
    for t in range(LENGTH):
        changed = inputs.clone()
        changed[:, t] = (changed[:, t] + 1) % config.vocab_size
        after = model(changed).logits
        assert_close(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


def cached_decoding_equals_the_full_forward(config: ModelConfig) -> None:
    """Whatever the chunks: all ways to cut four tokens, each chunk continuing from the cache (defect 1)."""
    model = build(config).eval()
    inputs, _ = tokens(config, length=4)
    full = model(inputs).logits
    for cuts in all_cuts(4):
        assert_close(in_chunks(model, inputs, cuts), full, rtol=1e-9, atol=1e-12)


def cached_decoding_with_padding_equals_the_full_forward(config: ModelConfig) -> None:
    """The mask of a padded batch covers cached and new tokens (defect 23)."""
    model = build(config).eval()
    inputs, _ = tokens(config)
    real = torch.arange(LENGTH) >= torch.tensor([[0], [2], [LENGTH - 1]])
    full = model(inputs, attention_mask=real).logits
    for cuts in ([], [3], list(range(1, LENGTH))):
        assert_close(in_chunks(model, inputs, cuts, real)[real], full[real], rtol=1e-9, atol=1e-12)


def a_padded_batch_equals_its_sequences_alone(config: ModelConfig) -> None:
    """Padding on the left or the right changes no logit, loss or gradient of the real tokens.

    Losses defined over the batch have no meaning for a sequence alone; that padding does not count in them is
    `padding_counts_in_no_loss`.
    """
    config = without_batch_losses(without_dropout(config))
    model = build(config)
    inputs, targets = tokens(config)
    lengths = [LENGTH, 4, 1]
    alone = [model(inputs[b : b + 1, :n], targets[b : b + 1, :n]) for b, n in enumerate(lengths)]
    weighted = [n * output.cross_entropy for n, output in zip(lengths, alone, strict=True)]
    cross_entropy = torch.stack(weighted).sum() / sum(lengths)
    regulariser = torch.stack([output.regulariser for output in alone]).mean()
    model.zero_grad()
    (cross_entropy + regulariser).backward()
    expected = gradients(model)
    for left in (False, True):
        real = torch.stack([torch.arange(LENGTH) < n for n in lengths])
        shifted, shifted_targets = inputs.clone(), targets.clone()
        if left:
            real = real.flip(-1)
            for b, n in enumerate(lengths):
                shifted[b], shifted_targets[b] = inputs[b].roll(-n), targets[b].roll(-n)
        padded = model(shifted, shifted_targets.where(real, IGNORED_TARGET), attention_mask=real)
        for b, output in enumerate(alone):
            assert_close(padded.logits[b, real[b]], output.logits[0], rtol=1e-9, atol=1e-12)
        assert_close(padded.cross_entropy, cross_entropy)
        assert_close(padded.regulariser, regulariser)
        model.zero_grad()
        padded.loss.backward()
        assert_close(gradients(model), expected, rtol=1e-8, atol=1e-11)


def padding_counts_in_no_loss(config: ModelConfig) -> None:
    """Whatever stands in padded places, and however many there are, the losses and gradients are the same."""
    config = without_dropout(config)
    model = build(config)
    inputs, targets = tokens(config)
    real = torch.arange(LENGTH) < torch.tensor([[LENGTH], [4], [1]])
    steps = []
    for more, other in ((0, 0), (0, 1), (3, 5)):
        padded = inputs.where(real, other)
        padded = torch.cat([padded, padded.new_full((BATCH, more), other)], dim=1)
        wanted = torch.cat(
            [targets.where(real, IGNORED_TARGET), targets.new_full((BATCH, more), IGNORED_TARGET)], dim=1
        )
        mask = torch.cat([real, real.new_zeros(BATCH, more)], dim=1)
        model.zero_grad()
        output = model(padded, wanted, attention_mask=mask)
        output.loss.backward()
        steps.append((output.loss, output.regulariser, gradients(model)))
    for step in steps[1:]:
        assert_close(step, steps[0], rtol=1e-8, atol=1e-11)


def saved_equals_loaded(config: ModelConfig) -> None:
    """state_dict, pickle, torch.save and deepcopy give the same bits, also after a training step (defect 18)."""
    model = build(config)
    inputs, targets = tokens(config)
    train_step(model, inputs, targets)
    model.eval()
    with torch.no_grad():
        expected = model(inputs).logits
        fresh = LanguageModel(config).double()
        fresh.load_state_dict(model.state_dict())
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copies = [fresh, pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False), copy.deepcopy(model)]
        for again in copies:
            assert torch.equal(again.eval()(inputs).logits, expected)


def compiled_equals_eager(config: ModelConfig) -> None:
    """Each layer compiles to one graph, and computes the same forwards and backwards."""
    assert_compiled_equals_eager(config, "aot_eager")


def assert_compiled_equals_eager(config: ModelConfig, backend: str) -> None:
    inputs, targets = tokens(config)
    eager = train_step(build(config), inputs, targets)
    torch.compiler.reset()
    model = build(config)
    for layer in model.stack.layers:
        layer.compile(backend=backend, fullgraph=True)
    with warnings.catch_warnings():
        # The compiler warns about its own doings: gradients it looks at, interfaces it still uses.
        warnings.simplefilter("ignore")
        assert_same_step(train_step(model, inputs, targets), eager)


def recomputed_equals_kept(config: ModelConfig) -> None:
    """Activation checkpointing changes no loss and no gradient, in the first step or the next (defect 24)."""
    inputs, targets = tokens(config)
    kept, recomputed = build(config), build(config)
    recomputed.stack.gradient_checkpointing = True
    for seed in (3, 4):
        assert_same_step(train_step(recomputed, inputs, targets, seed), train_step(kept, inputs, targets, seed))


def micro_batches_equal_the_whole(config: ModelConfig) -> None:
    """The mean over equal parts of a batch: losses and gradients, but for losses defined over the batch."""
    config = without_batch_losses(without_dropout(config))
    model = build(config)
    inputs, targets = tokens(config, batch=4)
    whole, expected = train_step(model, inputs, targets)
    model.zero_grad()
    losses = []
    for part, wanted in zip(inputs.chunk(2), targets.chunk(2), strict=True):
        output = model(part, wanted)
        (output.loss / 2).backward()
        losses.append(output.loss)
    assert_close(torch.stack(losses).mean(), whole.loss)
    assert_close(gradients(model), expected, rtol=1e-8, atol=1e-11)


def described_equals_built(config: ModelConfig) -> None:
    """The parameters and multiply-accumulates that `cost` states are those of the built model, also in training."""
    config = dataclasses.replace(without_batch_losses(without_dropout(config)), expert_backend="reference")
    if config.halting is not None:
        # Nothing is computed for a halted token; the stated cost is that of one which goes on to the end.
        config = dataclasses.replace(config, halting=dataclasses.replace(config.halting, threshold=1 - 1e-9))
    model = build(config)
    inputs, targets = tokens(config)
    stated = cost(config, context_length=LENGTH)
    assert stated.parameters == sum(parameter.numel() for parameter in model.parameters())
    forward, training = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad(), forward:
            model.eval()(inputs)
        with training:
            model.train()(inputs, targets).loss.backward()
    products = 2 * BATCH * LENGTH * (stated.macs_per_token - stated.reduction_macs_per_token)
    assert (forward.get_total_flops(), training.get_total_flops()) == (products, 3 * products)


def another_number_of_repeats_runs(config: ModelConfig) -> None:
    """The same weights at other depths: a cache of that depth, cached decoding, gradients, parameters unchanged."""
    inputs, targets = tokens(config, length=4)
    weights, logits = build(config).state_dict(), []
    for num_repeats in (1, config.num_repeats + 1):
        model = build(config.with_repeats(num_repeats))
        model.load_state_dict(weights)
        logits.append(model.eval()(inputs).logits)
        assert logits[-1].isfinite().all()
        for cuts in ([], [1, 3]):
            assert_close(in_chunks(model, inputs, cuts), logits[-1], rtol=1e-9, atol=1e-12)
    train_step(model.train(), inputs, targets)
    assert not torch.allclose(*logits)


def repetition_changes_nothing(config: ModelConfig) -> None:
    """A second forward and backward gives the same bits: nothing is remembered (defects 24 and 17)."""
    model = build(config)
    inputs, targets = tokens(config)
    first = train_step(model, inputs, targets)
    model.eval()(inputs[:, :2])
    assert_identical_step(train_step(model.train(), inputs, targets), first)
    assert not list(model.buffers())


def two_backward_passes_are_twice_one(config: ModelConfig) -> None:
    """The graph can be kept and walked again, and gradients add up."""
    model = build(config)
    inputs, targets = tokens(config)
    loss = model(inputs, targets).loss
    loss.backward(retain_graph=True)
    once = gradients(model)
    loss.backward()
    assert_close(gradients(model), {name: 2 * gradient for name, gradient in once.items()})


def inference_mode_leaves_training_alone(config: ModelConfig) -> None:
    """Training works after a forward under inference_mode and gives the same bits (defect 16)."""
    inputs, targets = tokens(config)
    expected = train_step(build(config), inputs, targets)
    model = build(config)
    with torch.inference_mode():
        model.eval()(inputs)
        model.train()(inputs, targets)
    assert_identical_step(train_step(model, inputs, targets), expected)


def an_exception_leaves_nothing_behind(config: ModelConfig) -> None:
    """After a forward that broke off in the last layer, the next step is as if it had not been (defect 24)."""
    inputs, targets = tokens(config)
    expected = train_step(build(config), inputs, targets)
    model = build(config)

    def break_off(*_: object) -> None:
        raise InterruptedError

    handle = model.stack.layers[-1].register_forward_hook(break_off)
    with pytest.raises(InterruptedError):
        model(inputs, targets)
    handle.remove()
    assert_identical_step(train_step(model, inputs, targets), expected)


def low_precision_keeps_phases_and_scores(config: ModelConfig) -> None:
    """A whole model in bf16 or fp16 trains in its dtype; rotations and scores stay float32 (defect 21)."""
    inputs, targets = tokens(config)
    for dtype in (torch.bfloat16, torch.float16):
        model = build(config, dtype)
        with watch(model) as seen:
            far = torch.arange(1000, 1000 + LENGTH)[None]
            output = model(inputs, targets, position_ids=far)
        assert output.logits.dtype == dtype
        assert output.loss.dtype == torch.float32
        output.loss.backward()
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())
        for cos, sin in seen.phases:
            assert cos.dtype == sin.dtype == torch.float32
            if cos.shape[-1]:
                fastest = torch.stack([cos, sin])[..., 0]
                assert (fastest.diff(dim=-1).abs().amax(0) > 0.1).all(), "neighbouring positions look alike"
        for router, x in seen.scored:
            assert x.dtype == dtype
            assert router.scores(x).dtype == torch.float32
        for gate, h in seen.halted:
            assert h.dtype == dtype
            assert all(logarithm.dtype == torch.float32 for logarithm in gate(h))


def autocast_keeps_phases_and_scores(config: ModelConfig) -> None:
    """Under autocast, rotations and scores are float32, and scores those computed without it (defects 9, 20)."""
    model = build(config, torch.float32)
    inputs, targets = tokens(config)
    with watch(model) as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(inputs, targets).loss
        under = [router.scores(x) for router, x in seen.scored]
        # Not called as modules: that would be noted, too.
        halting = [gate.forward(h) for gate, h in seen.halted]
    loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    assert loss.dtype == torch.float32
    assert all(cos.dtype == sin.dtype == torch.float32 for cos, sin in seen.phases)
    for (router, x), scores in zip(seen.scored, under, strict=True):
        assert scores.dtype == torch.float32
        assert torch.equal(scores, router.scores(x))
    for (gate, h), logarithms in zip(seen.halted, halting, strict=True):
        assert_close(logarithms, gate(h), rtol=0, atol=0)


def balance_stays_within_bounds(config: ModelConfig) -> None:
    """Between the bounds in training; σ-MoE's least is attained with even routers; exactly 0 in evaluation."""
    model = build(config)
    inputs, targets = tokens(config)
    lowest, highest = balance_bounds(config)
    assert lowest - 1e-12 <= model(inputs).regulariser.item() <= highest + 1e-12
    assert model.eval()(inputs, targets).regulariser.item() == 0
    routers = [module for module in model.modules() if isinstance(module, Router | SoftmaxRouter)]
    for router in routers:
        for parameter in router.parameters(recurse=False):
            nn.init.zeros_(parameter)
    if config.halting is None and all(isinstance(router, Router) for router in routers):
        assert abs(model.train()(inputs).regulariser.item() - lowest) < 1e-12


PROMISES: list[Promise] = [
    forward_runs,
    gradients_reach_every_used_parameter,
    the_future_is_invisible,
    cached_decoding_equals_the_full_forward,
    cached_decoding_with_padding_equals_the_full_forward,
    a_padded_batch_equals_its_sequences_alone,
    padding_counts_in_no_loss,
    saved_equals_loaded,
    compiled_equals_eager,
    recomputed_equals_kept,
    micro_batches_equal_the_whole,
    described_equals_built,
    another_number_of_repeats_runs,
    repetition_changes_nothing,
    two_backward_passes_are_twice_one,
    inference_mode_leaves_training_alone,
    an_exception_leaves_nothing_behind,
    low_precision_keeps_phases_and_scores,
    autocast_keeps_phases_and_scores,
    balance_stays_within_bounds,
]
