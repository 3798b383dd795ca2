"""Blocks, their initial weights, patches, and the position table of the image backbone."""

from __future__ import annotations

import math

import pytest
import torch

from src.model.dinov2 import Backbone, DinoV2
from src.model.patch import Patchify, PixelHead
from src.model.transformer import Block, RMSNorm, TransformerSettings, transformer_stack


def softmax_attention(x: torch.Tensor, block: Block, d_head: int, eps: float) -> torch.Tensor:
    """The attention of a block, head by head."""
    q, k, v = (x @ block.attn.to_qkv.weight.T).chunk(3, dim=-1)
    heads = []
    for part in range(x.shape[-1] // d_head):
        columns = slice(part * d_head, (part + 1) * d_head)
        query, key, value = q[..., columns], k[..., columns], v[..., columns]
        query = query / (query.square().mean(-1, keepdim=True) + eps).sqrt() * block.attn.q_norm.weight
        key = key / (key.square().mean(-1, keepdim=True) + eps).sqrt() * block.attn.k_norm.weight
        heads.append((query @ key.mT / math.sqrt(d_head)).softmax(-1) @ value)
    return torch.cat(heads, dim=-1) @ block.attn.fc.weight.T


def perturbed_block(eps: float) -> Block:
    block = Block(12, 4, qk_norm_eps=eps, init_std=0.3)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return block


def test_block_is_the_written_out_formula():
    block, x = perturbed_block(1e-3), torch.randn(2, 5, 12)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    y = x + softmax_attention(normed * block.norm1.weight, block, 4, 1e-3)
    normed = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    hidden = (normed * block.norm2.weight) @ block.mlp.mlp[0].weight.T
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = y + hidden @ block.mlp.mlp[2].weight.T
    torch.testing.assert_close(block(x), expected, atol=2e-6, rtol=0)


def test_a_wrong_epsilon_is_seen():
    """Negative control: the tolerance above tells LVSM's epsilon from UP-LVSM's."""
    block, x = perturbed_block(1e-3), torch.randn(2, 5, 12)
    right = block(x)
    block.attn.q_norm.eps = block.attn.k_norm.eps = 1e-5
    assert (block(x) - right).abs().max() > 2e-5


def test_rms_norm_computes_in_float32_and_keeps_the_type():
    norm = RMSNorm(64, 1e-5)
    x = torch.randn(3, 64).bfloat16() * 1e3
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), expected.bfloat16(), atol=0, rtol=0)


@pytest.mark.parametrize(
    "special_init,depth_init,expected",
    [
        (False, False, [0.02, 0.02, 0.02]),
        (True, False, [0.02 / math.sqrt(6)] * 3),
        (True, True, [0.02 / math.sqrt(2), 0.02 / math.sqrt(4), 0.02 / math.sqrt(6)]),
    ],
)
def test_initial_deviation_of_every_linear_map(special_init, depth_init, expected):
    settings = TransformerSettings(d=64, d_head=16, special_init=special_init, depth_init=depth_init)
    for block, std in zip(transformer_stack(3, settings, qk_norm_eps=1e-5), expected, strict=True):
        linears = [m.weight for m in block.modules() if isinstance(m, torch.nn.Linear)]
        assert len(linears) == 4
        for weight in linears:
            assert weight.std().item() == pytest.approx(std, rel=0.1)


def test_patches_are_row_major_with_the_channel_fastest():
    image = torch.arange(3 * 4 * 6.0).reshape(1, 1, 3, 4, 6)
    patches = Patchify(2)(image)
    assert patches.shape == (1, 6, 12)
    image = image[0, 0]
    row, column = 2, 4  # the last patch
    expected = [image[c, row + y, column + x].item() for y in (0, 1) for x in (0, 1) for c in (0, 1, 2)]
    assert patches[0, 5].tolist() == expected


def test_pixel_head_lays_patches_out_as_patchify_cuts_them():
    head = PixelHead(12, 2)
    with torch.no_grad():
        head[1].weight.copy_(torch.eye(12))
    tokens = torch.randn(2, 6, 12)
    image = head(tokens, 2, 4, 6)
    assert image.shape == (1, 2, 3, 4, 6)
    expected = torch.nn.functional.layer_norm(tokens, (12,)).sigmoid()
    torch.testing.assert_close(Patchify(2)(image), expected)


def test_position_table_is_used_as_it_is_on_its_own_grid_only():
    model = DinoV2(
        Backbone(embed_dim=8, depth=1, num_heads=2, img_size=20, num_register_tokens=0), 4, qk_norm=True
    )
    assert model.position_table(5, 5) is model.pos_embed
    assert model.position_table(3, 7).shape == (1, 22, 8)
    with torch.no_grad():
        model.pos_embed[:, 1:] = 3.0
    torch.testing.assert_close(model.position_table(3, 7)[:, 1:], torch.full((1, 21, 8), 3.0))


def test_position_table_keeps_rows_and_columns_apart():
    """A table that only varies from row to row still does so on a wide grid."""
    model = DinoV2(
        Backbone(embed_dim=8, depth=1, num_heads=2, img_size=20, num_register_tokens=0), 4, qk_norm=True
    )
    with torch.no_grad():
        model.pos_embed[:, 1:] = torch.arange(5.0).repeat_interleave(5)[None, :, None].expand(1, 25, 8)
    table = model.position_table(3, 7)[0, 1:, 0].reshape(3, 7)
    torch.testing.assert_close(table, table[:, :1].expand(3, 7))
    assert table[0, 0] < table[1, 0] < table[2, 0]
