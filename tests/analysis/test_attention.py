"""The attention of a vision transformer: against a loop in float64, its distribution, and where pictures show it."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor

from densepath.analysis import attention_shares as module
from densepath.analysis.attention import AttentionShares, LastAttention, aggregated, among_patches
from densepath.analysis.show_attention import show_attention
from densepath.cli import main
from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone, build_backbone
from densepath.sources.tiles.tile_files import SlideTiling, write_tiling
from densepath.synthetic.slide import write_slide

SMALL = "test_vit(reg_tokens=2,qk_norm=True)"


def small(name: str = SMALL) -> Backbone:
    """A transformer whose last attention is far from uniform."""
    torch.manual_seed(0)
    backbone = build_backbone(name).eval()
    model: Any = backbone.net.model
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.2)
    torch.nn.init.normal_(model.cls_token)
    return backbone


def loop(backbone: Backbone, pixels: Tensor) -> np.ndarray:
    """(H, n, n): softmax of q k / sqrt(d) for each head, query and key of the first view, without the prefix."""
    model: Any = backbone.net.model
    taken: list[Tensor] = []
    attention, prefix = model.blocks[-1].attn, model.num_prefix_tokens
    hook = attention.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    with torch.no_grad():
        backbone(pixels[:1])
        hook.remove()
        double = attention.double()
        qkv = double.qkv(taken[0][0].double()).reshape(-1, 3, double.num_heads, double.head_dim)
        q, k = double.q_norm(qkv[:, 0]).numpy(), double.k_norm(qkv[:, 1]).numpy()
    attention.float()
    tokens, heads, dim = q.shape
    out = np.zeros((heads, tokens - prefix, tokens - prefix))
    for head in range(heads):
        for i in range(prefix, tokens):
            scores = [math.exp(sum(q[i, head] * k[j, head]) / math.sqrt(dim)) for j in range(tokens)]
            row = [score / sum(scores) for score in scores][prefix:]
            out[head, i - prefix] = [value / sum(row) for value in row]
    return out


@pytest.mark.parametrize("name", ["test_vit", SMALL])
def test_attention_is_that_of_a_loop(name: str) -> None:
    backbone = small(name)
    pixels = torch.randn(2, 3, 64, 48)
    before = backbone(pixels)
    attention, prefix = LastAttention(backbone)(pixels)
    expected = loop(backbone, pixels)
    np.testing.assert_allclose(attention[0].double().numpy(), expected, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(attention.sum(-1).numpy(), 1, rtol=1e-5)
    np.testing.assert_allclose(aggregated(attention).sum(-1).numpy(), 12, rtol=1e-5)
    assert float(prefix.min()) > 0 and float(prefix.max()) < 1
    for stage, features in backbone(pixels).items():  # the network is as it was
        assert torch.equal(features, before[stage])


def test_rotary_positions_are_in_the_attention() -> None:
    """The rows of DINOv3's attention, which timm computes with rotary positions and registers, sum to 1 as well."""
    backbone = build_backbone("vit_small_patch16_dinov3(depth=1,embed_dim=96,num_heads=2)").eval()
    attention, _ = LastAttention(backbone)(torch.randn(1, 3, 32, 48))
    assert attention.shape[-2:] == (6, 6)
    np.testing.assert_allclose(attention.sum(-1).detach().numpy(), 1, rtol=1e-5)


def test_a_query_that_gives_patches_nothing_is_even() -> None:
    """Attention that sinks into the class token; and numbers that are not finite."""
    attention = torch.tensor([[0.2, 0.2, 0.6], [1.0, 0.0, 0.0], [0.0, 0.25, 0.75]])[None, None]
    among, prefix = among_patches(attention, 1)
    assert among[0, 0].tolist() == [[0.5, 0.5], [0.25, 0.75]] and float(prefix) == 0.5
    with pytest.raises(UserError, match="weights are damaged"):
        among_patches(torch.full((1, 1, 3, 3), float("nan")), 1)


def test_tokens_are_counted_in_their_bins() -> None:
    """Heads that attend to one token, and evenly; their mean; the limits belong to the middle."""
    one, even = torch.zeros(4, 4), torch.full((4, 4), 0.25)
    one[:, 2] = 1
    shares = AttentionShares(2)
    shares.add(torch.stack([one, even])[None], torch.tensor([[0.5, 0.25]]))
    assert shares.bins.tolist() == [[3, 0, 1], [0, 4, 0], [0, 3, 1]]  # the mean is 0.5, 0.5, 2.5, 0.5
    assert shares.prefix.tolist() == [0.5, 0.25, 0.375]
    edges, density = shares.density()
    assert density[np.searchsorted(edges, 0.51) - 1] == 0.75 and density[np.searchsorted(edges, 2.5) - 1] == 0.25


def test_no_token_lies_outside_of_the_picture(tmp_path: Path, monkeypatch: Any) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(module, "save", lambda figure, path: figures.append(figure))
    one, shares = torch.zeros(40, 40), AttentionShares(1)
    one[:, 2] = 1  # of 40 tokens one gets all
    shares.add(one[None, None], torch.tensor([[0.5]]))
    module.plot_shares({"w": shares}, tmp_path / "d.png")
    assert figures[0].axes[0].get_xlim()[1] >= 40


def write_images(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (80, 96, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def test_the_table_has_all_heads_and_weights(tmp_path: Path, capsys: Any) -> None:
    write_images(tmp_path / "images")
    torch.manual_seed(0)
    from densepath.nets.weights.saving import save_backbone

    save_backbone(tmp_path / "sharp.safetensors", small("test_vit"))
    weights = ["random", str(tmp_path / "sharp.safetensors")]
    options = ["--backbone", "test_vit", "--view_size", "64", "--examples", "2", "--query", "1", "3"]
    out = tmp_path / "out"
    command = ["show", "attention", "--data", f"{tmp_path}/images", "--weights", *weights, "--out", str(out)]
    assert main([*command, *options]) == 0
    with (out / "attention.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["head"] for row in rows] == [*("0", "1", "mean")] * 2 and {row["tokens"] for row in rows} == {"80"}
    for row in rows:
        assert sum(float(row[name]) for name in ("below_0.5", "0.5_to_2", "above_2")) == pytest.approx(1, abs=1e-5)
    assert float(rows[2]["0.5_to_2"]) > 0.99 > float(rows[5]["0.5_to_2"])  # small random weights attend evenly
    assert "random: 0.5 to 2" in capsys.readouterr().out
    for name in ("distribution.png", "overlays.png"):
        assert Image.open(out / name).width > 300


def test_a_slide_shows_the_attention_of_each_token_in_its_place(tmp_path: Path, monkeypatch: Any) -> None:
    """A token that gets twice its share, at row 1 and column 2 of 4 x 4, in two tiles; slides are chosen at random."""
    write_slide(tmp_path / "a.tiff", size=(256, 256), levels=(1, 2))
    corners = np.array([[0, 0], [128, 64]])
    tiling = SlideTiling("a", str(tmp_path / "a.tiff"), corners, 1.0, 64, (0.5, 0.5), (256, 256))
    folder = tmp_path / "T" / "1mpp_64px_0px_overlap" / "patches"
    folder.mkdir(parents=True)
    write_tiling(folder / "a_patches.h5", tiling)
    write_tiling(folder / "0_patches.h5", replace(tiling, name="0"))
    (tmp_path / "T" / "config.yaml").write_text("# densepath tile\n")
    (tmp_path / "T" / "slides.csv").write_text(
        "slide,path,mpp,width,height,tiles,tissue_mm2,problem\n"
        + "".join(f"{name},{tmp_path}/a.tiff,0.5,256,256,2,0,\n" for name in "0a")
    )

    def planted(self: LastAttention, pixels: Tensor) -> tuple[Tensor, Tensor]:
        attention = torch.full((len(pixels), 2, 16, 16), 14 / 15 / 15)
        attention[..., 6] = 2 / 16
        attention[..., :6] = attention[..., 7:] = (1 - 2 / 16) / 15
        return attention, torch.zeros(len(pixels), 2)

    monkeypatch.setattr(LastAttention, "__call__", planted)
    given: dict[str, Any] = {"backbone": "test_vit", "view_size": 64, "examples": 0, "heat_maps": 1, "devices": "cpu"}
    show_attention(data=tmp_path / "T", weights=["random"], out=tmp_path / "out", seed=1, **given)
    assert [path.name for path in (tmp_path / "out" / "heat_maps" / "random").glob("*.tif")] == ["a.tif"]
    pixels = tifffile.imread(tmp_path / "out" / "heat_maps" / "random" / "a.tif").astype(int)
    step = 256 // len(pixels)
    bright, usual = pixels[(16 * 2 + 4) // step, (16 * 4 + 4) // step], pixels[4 // step, 4 // step]
    # A token is 16 µm, 32 pixels of level 0: in the tile at (64, 128) it begins at row 96 and column 192.
    for top, left in ((32, 64), (96, 192)):
        own = pixels[top // step : (top + 32) // step, left // step : (left + 32) // step]
        assert (own == bright).all()
    yellow = (pixels == bright).all(-1).sum() * step**2
    assert yellow == 2 * 32 * 32 and (bright != usual).any()


def test_mistakes_are_named(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    given: dict[str, Any] = {"data": tmp_path / "images", "out": tmp_path / "out", "weights": ["random"]}
    with pytest.raises(UserError, match="resnet18 has no attention"):
        show_attention(**given)
    with pytest.raises(UserError, match=r"query is \[4, 0\], but random has 4 x 4 tokens"):
        show_attention(**given, backbone="test_vit", view_size=64, query=[4, 0])
    with pytest.raises(UserError, match="images have 0 x 0 px; give a size of at least 1"):
        show_attention(**given, backbone="test_vit", view_size=0)
    with pytest.raises(UserError, match="heat maps are for slides"):
        show_attention(**given, backbone="test_vit", heat_maps=1)
    with pytest.raises(UserError, match="name a folder"):
        show_attention(**{**given, "out": tmp_path / "a.png"}, backbone="test_vit")
