"""Adapters of frozen weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from src.model.lora import (
    Lora,
    LoraOfType,
    adapter_tensors,
    add_lora,
    load_adapter,
    lora_layers,
    lora_names,
    merge,
    remove,
    set_enabled,
    with_adapter_names,
)

BOTH = Lora(
    Linear=LoraOfType(lora_rank=3, lora_alpha=2.0),
    Conv2d=LoraOfType(lora_rank=2, lora_alpha=1.5),
    Embedding=LoraOfType(lora_rank=2),
)


class Small(nn.Module):
    """An embedding, a convolution and a linear map, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 16)
        self.conv = nn.Conv2d(4, 5, 3, padding=1)
        self.norm = nn.GroupNorm(1, 5)
        self.fc = nn.Linear(5 * 4, 6)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        x = self.table(index).reshape(-1, 4, 2, 2)
        return self.fc(self.norm(self.conv(x)).flatten(1))


INDEX = torch.tensor([0, 3, 6])


def adapted(settings: Lora = BOTH) -> Small:
    model = Small()
    add_lora(model, settings)
    for _, part in lora_layers(model):
        nn.init.normal_(part.lora_B)
    return model


def test_a_fresh_adapter_changes_nothing_and_learns_alone() -> None:
    model = Small()
    before = model(INDEX)
    assert add_lora(model, BOTH) == 3
    torch.testing.assert_close(model(INDEX), before, rtol=0, atol=0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        f"{layer}.parametrizations.weight.0.lora_{factor}"
        for layer in ("table", "conv", "fc")
        for factor in "AB"
    }
    model(INDEX).square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


def test_the_update_is_b_a_times_alpha_over_the_root_of_the_rank() -> None:
    model = adapted()
    for layer, alpha, rank in ((model.fc, 2.0, 3), (model.conv, 1.5, 2)):
        parts = layer.parametrizations.weight
        a, b = parts[0].lora_A, parts[0].lora_B
        assert a.shape == (rank, parts.original[0].numel()) and b.shape == (len(parts.original), rank)
        update = torch.einsum("or,ri->oi", b, a) * alpha / math.sqrt(rank)
        torch.testing.assert_close(layer.weight, parts.original + update.reshape(parts.original.shape))
    table = model.table.parametrizations.weight
    update = (table[0].lora_B @ table[0].lora_A).T * 2.0 / math.sqrt(2)
    torch.testing.assert_close(model.table.weight, table.original + update)


def test_merged_weights_compute_the_same_and_carry_no_adapter() -> None:
    model = adapted()
    before = model(INDEX)
    names = set(Small().state_dict())
    merge(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model(INDEX), before, rtol=0, atol=0)
    assert not any(p.requires_grad for p in model.parameters())


def test_removed_or_disabled_adapters_leave_the_original() -> None:
    model = Small()
    before = model(INDEX)
    add_lora(model, BOTH)
    for _, part in lora_layers(model):
        nn.init.normal_(part.lora_B)
    assert (model(INDEX) - before).abs().max() > 0.01
    set_enabled(model, False)
    torch.testing.assert_close(model(INDEX), before, rtol=0, atol=0)
    remove(model)
    torch.testing.assert_close(model(INDEX), before, rtol=0, atol=0)


def test_several_sets_add_up_and_are_switched_by_name() -> None:
    model = adapted()
    first = model(INDEX)
    add_lora(model, BOTH, "second")
    for _, part in lora_layers(model, "second"):
        nn.init.normal_(part.lora_B)
    assert lora_names(model) == ["default", "second"]
    assert "fc.parametrizations.weight.1.lora_A" in model.state_dict()
    set_enabled(model, False, "second")
    torch.testing.assert_close(model(INDEX), first, rtol=0, atol=0)
    with pytest.raises(ValueError, match="no set of adapters is called third"):
        set_enabled(model, True, "third")
    with pytest.raises(ValueError, match="already a set"):
        add_lora(model, BOTH, "second")


def test_an_exported_set_fills_another_model() -> None:
    model, other = adapted(), Small()
    other.load_state_dict(with_plain_names(model))
    add_lora(other, BOTH)
    load_adapter(other, adapter_tensors(model))
    torch.testing.assert_close(other(INDEX), model(INDEX), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"first difference: fc.lora_A"):
        load_adapter(other, {n: t for n, t in adapter_tensors(model).items() if n != "fc.lora_A"})


def with_plain_names(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name.replace("parametrizations.weight.original", "weight"): tensor
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }


def test_a_plain_file_and_an_old_one_load_under_the_adapters_names() -> None:
    plain, model = Small(), adapted()
    factors = adapter_tensors(model)
    model.load_state_dict(with_adapter_names(model, plain.state_dict()))
    torch.testing.assert_close(model.fc.parametrizations.weight.original, plain.fc.weight)
    torch.testing.assert_close(adapter_tensors(model), factors)
    old = {**model.state_dict(), "fc.parametrizations.weight.0.lora_dropout_mask": torch.ones(1, 20)}
    model.load_state_dict(with_adapter_names(model, old))


def test_factors_are_float32_and_the_weight_keeps_its_type() -> None:
    model = Small().to(torch.bfloat16)
    add_lora(model, BOTH)
    assert model.fc.weight.dtype == torch.bfloat16
    assert {t.dtype for t in adapter_tensors(model).values()} == {torch.float32}


def test_dropout_leaves_whole_inputs_out_of_the_update_while_training() -> None:
    model = adapted(Lora(Linear=LoraOfType(lora_rank=2, lora_dropout_p=0.5)))
    part = model.fc.parametrizations.weight
    part.train()
    update = model.fc.weight - part.original
    missing = (update == 0).all(dim=0)
    assert 0 < missing.sum() < 20
    part.eval()
    assert not (model.fc.weight == part.original).any()
    assert not (adapted(BOTH).fc.parametrizations.weight[0].dropout)
