"""Published pathology networks: their folders give the class token, tokens and map of timm's or transformers' network.

The configurations are the published ones at reduced width and depth. Sources: the config.json of each repository on the
Hugging Face hub, as quoted in TRIDENT (mahmoodlab/TRIDENT, patch_encoder_models/load.py), kaiko-ai/eva and LazySlide,
and the model cards.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from densepath.benchmark.identity import digest_of_weights
from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.backbones.names import create_network, parse_name
from densepath.nets.backbones.transformer_parts import add_positions, embed_patches, encode
from densepath.nets.teachers import build_teacher
from densepath.nets.weights import load_weights, read_weights, save_backbone
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.nets.weights.pretrained import backbone_of_weights, guess_backbone, pretrained_backbone
from densepath.nets.weights.published import is_published, preprocessing
from densepath.nets.weights.trained_on import slides_of_weights
from densepath.nets.weights.transformer_names import head_width, name_transformer, to_timm
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.embed.encoder import load_encoder

_TRANSFORMERS = importlib.util.find_spec("transformers")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
H_OPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
ONE = torch.ones(1)
SWIGLU = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}  # what the model cards tell users of timm to pass


class Family(NamedTuple):
    """A family of timm: its architecture, the arguments of its config.json, those that only its model card has."""

    architecture: str
    model_args: dict[str, Any]
    card_args: dict[str, Any]
    patch: int
    registers: int
    statistics: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    flat: bool = False  # UNI has its arguments at the top of config.json


SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}
FAMILIES = {
    "UNI": Family(
        "vit_large_patch16_224",
        {"patch_size": 16, "img_size": 224, "init_values": 1.0, "dynamic_img_size": True, **SMALL},
        {},
        16,
        0,
        flat=True,
    ),
    "UNI2-h": Family(
        "vit_giant_patch14_224",
        {
            "img_size": 224,
            "patch_size": 14,
            "init_values": 1e-5,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
            **SMALL,
        },
        SWIGLU,
        14,
        8,
    ),
    "H-optimus-0": Family(
        "vit_giant_patch14_reg4_dinov2", {"img_size": 224, "init_values": 1e-5, **SMALL}, {}, 14, 4, H_OPTIMUS
    ),
    "H-optimus-1": Family(
        "vit_giant_patch14_reg4_dinov2",
        {"img_size": 224, "global_pool": "token", "dynamic_img_size": False, **SMALL},
        {"init_values": 1e-5},
        14,
        4,
        H_OPTIMUS,
    ),
    "H0-mini": Family("vit_base_patch14_reg4_dinov2", {"img_size": 224, **SMALL}, SWIGLU, 14, 4, H_OPTIMUS),
    "Virchow": Family(
        "vit_huge_patch14_224",
        {"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", **SMALL},
        SWIGLU,
        14,
        0,
    ),
    "Virchow2": Family(
        "vit_huge_patch14_224",
        {"img_size": 224, "init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.3375, "global_pool": "", **SMALL},
        SWIGLU,
        14,
        4,
    ),
    "prov-gigapath": Family(
        "vit_giant_patch14_dinov2",
        {"img_size": 224, "patch_size": 16, "init_values": 1e-5, "mlp_ratio": 5.33334, "in_chans": 3, **SMALL},
        {},
        16,
        0,
    ),
    "kaiko": Family("vit_large_patch14_reg4_dinov2", {"img_size": 518, **SMALL}, {}, 14, 4, HALF),
    "lunit": Family("vit_small_patch8_224", SMALL, {}, 8, 0, LUNIT),
}


def moved(network: Any) -> Any:
    """A network whose every parameter differs from its neutral start, in eval mode."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return network.eval()


def tokens_of(backbone: Any, pixels: Tensor) -> Tensor:
    model = backbone.net.model
    tokens: Tensor = encode(model, add_positions(model, embed_patches(model, pixels)))
    return tokens


def check(backbone: Any, oracle: Callable[[Tensor], Tensor], prefix: int, *sizes: tuple[int, int]) -> None:
    """Class token, all tokens and the map of a backbone equal those of another network at several sizes."""
    patch = backbone.patch_size
    for height, width in sizes:
        pixels = torch.randn(2, 3, height * patch, width * patch)
        with torch.no_grad():
            wanted, found, (feature,) = oracle(pixels), tokens_of(backbone, pixels), backbone(pixels).values()
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        expected = wanted[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
        torch.testing.assert_close(feature, expected, rtol=0, atol=1e-5)


def write_timm(folder: Path, family: Family, network: Any, pickled: bool) -> None:
    mean, std = family.statistics
    made = {"input_size": [3, 224, 224], "mean": list(mean), "std": list(std), "interpolation": "bicubic"}
    config = {"architecture": family.architecture, "num_classes": 0, "pretrained_cfg": made}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps(config | (family.model_args if family.flat else {"model_args": family.model_args}))
    )
    if pickled:
        torch.save(network.state_dict(), folder / "pytorch_model.bin")
    else:
        save_file(network.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_timm_follows_from_its_folder(name: str, tmp_path: Path) -> None:
    family, folder = FAMILIES[name], tmp_path / name
    arguments = {**family.model_args, **family.card_args, "dynamic_img_size": True, "num_classes": 0}
    network = moved(timm.create_model(family.architecture, **arguments))
    write_timm(folder, family, network, pickled=name.startswith(("UNI", "H-opt")))

    backbone, spec, size, line = pretrained_backbone(folder)
    assert (spec.mean, spec.std, size) == (*family.statistics, 224)
    count = len(network.state_dict())
    assert line == f"{backbone.name} with {count} of {count} tensors from {folder}"
    stage = 3 if family.patch == 8 else 4
    assert (backbone.patch_size, backbone.strides) == (family.patch, {stage: (family.patch, family.patch)})
    check(backbone.eval(), network.forward_features, 1 + family.registers, (16, 16), (9, 7))

    again = build_backbone(backbone.name)  # the name is all that a run or a detector records
    save_backbone(tmp_path / "w.safetensors", backbone)
    load_weights(again, tmp_path / "w.safetensors")
    assert backbone_of_weights(tmp_path / "w.safetensors") == backbone.name
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in backbone.state_dict().items())


FULL = {"UNI2-h": {"embed_dim": 1536, "depth": 24, "num_heads": 24}, "prov-gigapath": {"depth": 40, "num_heads": 24}}
EXPECTED = {
    "UNI": "vit_large_patch16_224(init_values=1e-05)",
    "H-optimus-0": "vit_giant_patch14_reg4_dinov2(img_size=224)",
    "Virchow2": "vit_huge_patch14_224(mlp_ratio=5.3375, init_values=1e-05, reg_tokens=4, mlp_layer='SwiGLUPacked', "
    "act_layer='silu')",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_names_of_the_published_sizes_give_their_shapes(name: str) -> None:
    family = FAMILIES[name]
    arguments = {key: value for key, value in family.model_args.items() if key not in SMALL} | FULL.get(name, {})
    made = {"num_classes": 0, "weight_init": "skip"}
    with torch.device("meta"):
        state = timm.create_model(family.architecture, **arguments, **family.card_args, **made).state_dict()
        known = {key: arguments[key] for key in ("num_heads", "no_embed_class") if key in arguments}
        found = name_transformer(state, family.architecture, known)
        assert found is not None and found == EXPECTED.get(name, found)
        again = create_network(found, **made).state_dict()
    assert {key: value.shape for key, value in again.items()} == {key: value.shape for key, value in state.items()}


def test_norms_of_queries_over_the_whole_width_do_not_show_heads() -> None:
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1).state_dict()
    norm = "blocks.0.attn.q_norm.weight"
    for channels, heads, shown in ((48, 4, 48), (192, 3, 0), (384, 3, 0)):
        found = name_transformer(state | {norm: torch.ones(channels)})
        assert found is not None and parse_name(found)[1].get("num_heads", 3) == heads
        assert (
            head_width(
                {f"encoder.{key}": value for key, value in state.items()}
                | {f"encoder.{norm}": torch.ones(channels), f"decoder.{norm}": torch.ones(16)}
            )
            == shown
        )
    assert head_width(state | {f"decoder.{norm}": torch.ones(16)}) == 0


def test_a_configuration_without_arguments_is_completed_by_the_shapes(tmp_path: Path) -> None:
    """As of UNI2-h, whose model card gives all arguments; its width follows from 64 channels per head."""
    wide = {**FAMILIES["UNI2-h"].model_args, "embed_dim": 192, "num_heads": 3}
    network = moved(timm.create_model("vit_giant_patch14_224", num_classes=0, **wide, **SWIGLU))
    write_timm(tmp_path / "UNI2-h", FAMILIES["UNI2-h"]._replace(model_args={}), network, pickled=False)
    check(pretrained_backbone(tmp_path / "UNI2-h").backbone.eval(), network.forward_features, 9, (16, 16))


HIBOU = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))


def of_transformers(name: str) -> tuple[Any, int, tuple[tuple[float, ...], tuple[float, ...]], int]:
    """A model of transformers, its prefix tokens, mean and std, and the side of its images."""
    import transformers as hf

    small: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 224}
    if name == "phikon":
        return hf.ViTModel(hf.ViTConfig(**small, intermediate_size=192), add_pooling_layer=False), 1, IMAGENET, 224
    if name == "phikon-v2":
        return hf.Dinov2Model(hf.Dinov2Config(**small, patch_size=16)), 1, IMAGENET, 224
    gated: dict[str, Any] = {**small, "patch_size": 14, "use_swiglu_ffn": True}
    if name == "midnight":
        return hf.Dinov2Model(hf.Dinov2Config(**{**gated, "image_size": 518})), 1, HALF, 518
    return hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**gated)), 5, HIBOU, 224


@pytest.mark.skipif(not _TRANSFORMERS, reason="transformers is not installed")
@pytest.mark.parametrize("name", ["phikon", "phikon-v2", "midnight", "hibou-L"])
def test_a_network_of_transformers_follows_from_its_folder_without_transformers(name: str, tmp_path: Path) -> None:
    network, prefix, statistics, side = of_transformers(name)
    moved(network).save_pretrained(tmp_path / name)
    options = {"interpolate_pos_encoding": True} if name == "phikon" else {}
    if name in ("phikon", "phikon-v2"):  # the cards of the others give the numbers
        notes = {"image_mean": list(statistics[0]), "image_std": list(statistics[1]), "size": {"shortest_edge": 224}}
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(notes))
    if name == "hibou-L":  # has code of its own, and calls itself a DINOv2
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text()) | {"model_type": "dinov2", "auto_map": {"AutoModel": "evil.Model"}}
        path.write_text(json.dumps(config))
    backbone, spec, size, line = pretrained_backbone(tmp_path / name)
    assert (spec.mean, spec.std, size) == (*statistics, side)
    assert "; not in the file" not in line
    check(backbone.eval(), lambda x: network(x, **options).last_hidden_state, prefix, (16, 16), (9, 7), (20, 20))


@pytest.mark.skipif(not _TRANSFORMERS, reason="transformers is not installed")
@pytest.mark.parametrize("name", ["phikon", "phikon-v2", "midnight", "hibou-L"])
def test_the_state_of_a_network_of_transformers_is_that_of_its_folder(name: str, tmp_path: Path) -> None:
    """Since transformers 5 the tensors have other names in the network; a trainer adds a prefix."""
    network = moved(of_transformers(name)[0])
    network.save_pretrained(tmp_path / name)
    torch.save({"state_dict": network.state_dict(prefix="student.net.")}, tmp_path / "w.ckpt")
    made, of_folder = (to_timm(read_weights(path).state_dict) for path in (tmp_path / "w.ckpt", tmp_path / name))
    assert made.keys() == {f"student.net.{key}" for key in of_folder}
    assert all(torch.equal(made[f"student.net.{key}"], value) for key, value in of_folder.items())
    assert (found := guess_backbone(made)) is not None and found == guess_backbone(of_folder)
    assert " under student.net." in load_weights(build_backbone(found), tmp_path / "w.ckpt", complete=True)


class Pooler(torch.nn.Module):
    """CONCH's attention pool by the definition of attention, eight heads one after the other."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.query = torch.nn.Parameter(torch.zeros(1, dim))
        self.attn = torch.nn.MultiheadAttention(dim, 8, kdim=width, vdim=width)  # for its names of tensors
        self.ln_q, self.ln_k = torch.nn.LayerNorm(dim), torch.nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        seen, query, own = self.ln_k(tokens), self.ln_q(self.query), self.attn
        parts = (own.q_proj_weight, query), (own.k_proj_weight, seen), (own.v_proj_weight, seen)
        q, k, v = (x @ w.T + b for (w, x), b in zip(parts, own.in_proj_bias.chunk(3), strict=True))
        answers = []
        for head in range(8):
            mine = slice(head * q.shape[-1] // 8, (head + 1) * q.shape[-1] // 8)
            scores = (k[..., mine] @ q[0, mine]) / (q.shape[-1] / 8) ** 0.5  # (B, N)
            answers.append(torch.einsum("bn,bnc->bc", scores.softmax(1), v[..., mine]))
        return own.out_proj(torch.cat(answers, 1))


def mean_of(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values).view(3, 1, 1)


@pytest.mark.parametrize("prefix", ["visual.trunk.", "module.visual.trunk."])
def test_of_conch_the_image_trunk_and_its_attention_pool_are_taken(prefix: str, tmp_path: Path) -> None:
    """Its folder has no config.json: a trunk of timm under ``visual.trunk.``, attention pools, and two text towers."""
    size = {"embed_dim": 128, "depth": 2, "num_heads": 2}  # 64 channels per head, as in the published one
    trunk = moved(VisionTransformer(img_size=64, **size, num_classes=0, dynamic_img_size=True))
    state = {f"{prefix}{key}": value for key, value in trunk.state_dict().items()}
    pool, norm = Pooler(128, 64), moved(torch.nn.LayerNorm(64))
    towers = {f"visual.attn_pool_contrast.{key}": value for key, value in moved(pool).state_dict().items()}
    towers |= {f"visual.ln_contrast.{key}": value for key, value in norm.state_dict().items()}
    towers |= {"visual.proj_contrast": torch.ones(64, 64), "text.cls_emb": torch.ones(128)}
    state |= {prefix.removesuffix("visual.trunk.") + key: value for key, value in towers.items()}
    (tmp_path / "conch").mkdir()
    torch.save(state, tmp_path / "conch" / "pytorch_model.bin")
    backbone, spec, _, line = pretrained_backbone(tmp_path / "conch")
    assert (spec.mean, spec.std) == CLIP
    assert backbone.name == "vit_base_patch16_224(img_size=64, embed_dim=128, depth=2, num_heads=2)"
    check(backbone.eval(), trunk.forward_features, 1, (4, 4), (5, 3))
    count = len(trunk.state_dict())
    assert line == f"{backbone.name} with {count} of {count} tensors from {tmp_path / 'conch'}"
    encoder, _ = load_encoder(tmp_path / "conch")
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    tokens = trunk.forward_features((pixels.movedim(-1, 1) / 255 - mean_of(CLIP[0])) / mean_of(CLIP[1]))
    assert encoder.pool == "attention" and encoder.dim == 64
    torch.testing.assert_close(encoder(pixels), norm(pool(tokens)), atol=1e-5, rtol=1e-5)
    assert load_encoder(tmp_path / "conch", pool="cls")[0].dim == 128


CLIP_SIZE: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64}


@pytest.mark.skipif(not _TRANSFORMERS, reason="transformers is not installed")
@pytest.mark.parametrize(("whole", "act"), [(True, "quick_gelu"), (False, "gelu")])
def test_the_image_tower_of_clip_follows_from_its_folder(whole: bool, act: str, tmp_path: Path) -> None:
    """As of PLIP, a CLIPModel with a text tower, and of its image tower only; the last norm is on all tokens."""
    import transformers as hf

    size = {**CLIP_SIZE, "intermediate_size": 256, "patch_size": 16, "hidden_act": act}
    if whole:
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        text |= {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
        network = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=size)).eval()
        moved(network.vision_model)
    else:
        network = moved(hf.CLIPVisionModel(hf.CLIPVisionConfig(**size)))
    network.save_pretrained(tmp_path / "plip")
    notes = {"image_mean": list(CLIP[0]), "image_std": list(CLIP[1]), "crop_size": {"height": 64, "width": 64}}
    (tmp_path / "plip" / "preprocessor_config.json").write_text(json.dumps(notes))
    backbone, spec, side, line = pretrained_backbone(tmp_path / "plip")
    assert (spec.mean, spec.std, side) == (*CLIP, 64) and "; not in the file" not in line
    tower = getattr(network, "vision_model", network)

    def oracle(x: Tensor) -> Tensor:
        tokens: Tensor = tower.post_layernorm(tower(x, interpolate_pos_encoding=True).last_hidden_state)
        return tokens

    check(backbone.eval(), oracle, 1, (4, 4), (5, 3))


class OpenClip(nn.Module):
    """The image tower of OpenCLIP, up to its last norm."""

    def __init__(self, width: int, heads: int, grid: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 16, 16, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList()
        for _ in range(2):
            block = nn.Module()
            block.ln_1, block.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            block.attn = nn.MultiheadAttention(width, heads, batch_first=True)
            block.mlp = nn.Module()
            block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.transformer.resblocks.append(block)
        self.proj = nn.Parameter(torch.randn(width, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_embedding.expand(len(x), 1, -1), x), dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, need_weights=False)[0]
            y = block.mlp.c_fc(block.ln_2(x))
            x = x + block.mlp.c_proj(y * torch.sigmoid(1.702 * y))  # quick GELU
        x = self.ln_post(x)
        return x


def test_the_image_tower_of_openclip_follows_from_its_folder(tmp_path: Path) -> None:
    network = moved(OpenClip(128, 4, 4))
    state = network.state_dict(prefix="visual.") | {"positional_embedding": torch.ones(77, 32), "text_projection": ONE}
    torch.save(state | {"transformer.resblocks.0.ln_1.weight": ONE}, tmp_path / "open_clip_pytorch_model.bin")
    tower = {"image_size": 64, "layers": 2, "width": 128, "head_width": 32, "patch_size": 16}
    config = {
        "model_cfg": {"vision_cfg": tower, "quick_gelu": True},
        "preprocess_cfg": {"mean": list(HALF[0]), "std": list(HALF[1])},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    backbone, spec, side, line = pretrained_backbone(tmp_path)
    assert (spec.mean, spec.std, side) == (*HALF, 64) and "; not in the file" not in line
    check(backbone.eval(), network, 1, (4, 4))


@pytest.mark.parametrize("name", ["vit_base_patch16_clip_224", "vit_base_patch32_clip_quickgelu_224"])
def test_clip_of_timm_follows_from_its_folder(name: str, tmp_path: Path) -> None:
    network = moved(timm.create_model(name, num_classes=0, dynamic_img_size=True, **SMALL))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    notes = {"architecture": name, "model_args": SMALL, "pretrained_cfg": {"mean": CLIP[0], "std": CLIP[1]}}
    (tmp_path / "config.json").write_text(json.dumps(notes))
    backbone, spec, *_ = pretrained_backbone(tmp_path)
    assert (spec.mean, spec.std) == CLIP
    check(backbone.eval(), network.forward_features, 1, (7, 7), (3, 5))


def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    names = sorted(state)
    files = {"model-00001-of-00002.safetensors": names[:50], "model-00002-of-00002.safetensors": names[50:]}
    for file, keys in files.items():
        save_file({key: state[key] for key in keys}, tmp_path / file)
    index = {"weight_map": {key: file for file, keys in files.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    other = {"weight_map": dict.fromkeys(state, "pytorch_model-00001-of-00001.bin")}  # which fetch leaves out
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(other))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit"}))
    assert f"with {len(state)} of {len(state)} tensors" in pretrained_backbone(tmp_path).line
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    for use in (pretrained_backbone, slides_of_weights, lambda folder: digest_of_weights(str(folder), tmp_path / "c")):
        with pytest.raises(UserError, match=r"lacks model-00002-of-00002\.safetensors, a part of its weights"):
            use(tmp_path)


@pytest.mark.parametrize(("configured", "count"), [(True, 2), (False, 2), (True, 1)])
def test_divided_weights_do_for_all_that_takes_weights(configured: bool, count: int, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    parts = {key: f"model-0000{1 + k % count}-of-0000{count}.safetensors" for k, key in enumerate(state)}
    for part in {*parts.values()}:
        save_file({key: value for key, value in state.items() if parts[key] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    if configured:
        (folder / "config.json").write_text(json.dumps({"architecture": "test_resnet"}))
    assert slides_of_weights(folder) is None
    assert pretrained_backbone(folder, "test_resnet").backbone.name == "test_resnet"


def test_queries_keys_and_values_are_joined_only_where_all_are_there() -> None:
    """The keys of BEiT have no bias."""
    of = "encoder.layer.0.attention.attention"
    state = {f"{of}.{part}.weight": torch.rand(4, 4) for part in ("query", "key", "value")}
    state |= {f"{of}.{part}.bias": torch.rand(4) for part in ("query", "value")}
    made = to_timm(state | {"embeddings.patch_embeddings.projection.weight": torch.rand(4, 3, 2, 2)})
    assert torch.equal(made["blocks.0.attn.qkv.weight"], torch.cat(list(state.values())[:3]))
    assert not any(key.endswith("qkv.bias") for key in made)
    assert made["blocks.0.attn.q.bias"] is state[f"{of}.query.bias"]


def test_norms_of_queries_show_the_heads(tmp_path: Path) -> None:
    network = moved(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, qk_norm=True, num_heads=6))
    torch.save(network.state_dict(), tmp_path / "w.pth")
    found = pretrained_backbone(tmp_path / "w.pth")
    assert found.backbone.name == "vit_tiny_patch16_224(depth=1, qk_norm=True, num_heads=6)"
    assert "assumed" not in found.line


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "vit_from_the_future"}, "timm has no network 'vit_from_the_future'"),
        ({"model_type": "swin"}, "do not show which backbone they belong to"),
    ],
)
def test_folders_of_other_networks_are_refused(config: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"layers.0.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        pretrained_backbone(tmp_path)


def test_what_the_folder_of_a_network_does_not_give_is_reported(tmp_path: Path) -> None:
    """A damaged configuration is refused: without it the network would have other heads and colors, silently."""
    arguments = {"embed_dim": 96, "depth": 2, "num_heads": 3, "img_size": 64, "num_classes": 0}
    network = timm.create_model("vit_tiny_patch16_224", **arguments)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "model_args": arguments}
    made = {"mean": [0.5] * 3, "std": [0.5] * 3}
    text = json.dumps(config | {"pretrained_cfg": made})
    both = "heads of 64 channels and mean and std of ImageNet are assumed"
    for content, said in ((text, None), (json.dumps(config), "; mean and std of ImageNet are assumed"), (None, both)):
        (tmp_path / "config.json").unlink(missing_ok=True)
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        line = pretrained_backbone(tmp_path).line
        assert said in line if said else "assumed" not in line
    for damaged in (text[:-9], "[]", ""):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(UserError, match=r"config.json (is not JSON|does not hold an object)"):
            pretrained_backbone(tmp_path)


def test_a_teacher_has_gated_layers_and_layer_scale_that_its_configuration_lacks(tmp_path: Path) -> None:
    family = FAMILIES["Virchow2"]
    arguments = {**family.model_args, **SWIGLU, "num_classes": 0, "dynamic_img_size": True}
    network = moved(timm.create_model(family.architecture, **arguments))
    write_timm(tmp_path / "Virchow2", family, network, pickled=False)
    teacher = build_teacher(str(tmp_path / "Virchow2"))
    pixels = torch.randn(1, 3, 56, 56)
    torch.testing.assert_close(teacher(pixels, 4), network.forward_features(pixels)[:, 5:], rtol=0, atol=1e-5)


def test_a_gated_model_without_network_names_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    message = (
        r"^hf-hub:MahmoodLab/UNI2-h could not be fetched \(ConnectionError\); .*'hf download MahmoodLab/UNI2-h "
        r"--local-dir FOLDER' .*gated.*'hf auth login'.* give FOLDER$"
    )
    with pytest.raises(UserError, match=message):
        pretrained_backbone("hf-hub:MahmoodLab/UNI2-h")


def test_the_cache_of_the_hub_is_read_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["H-optimus-0"]
    cached = tmp_path / "models--bioptimus--H-optimus-0"
    network = timm.create_model(family.architecture, **family.model_args, num_classes=0)
    write_timm(cached / "snapshots" / "abc", family._replace(statistics=IMAGENET), network, pickled=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    backbone, spec, *_ = pretrained_backbone("hf-hub:bioptimus/H-optimus-0")
    assert backbone.patch_size == 14 and (spec.mean, spec.std) == H_OPTIMUS


SMALL_VIT = "vit_base_patch16_224(img_size=160, embed_dim=64, depth=6, mlp_ratio=3.0, num_heads=1)"


@pytest.mark.parametrize(
    ("name", "found"),
    [(name, name) for name in ("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "vit_tiny_patch16_224")]
    + [("resnext101_64x4d", "resnext101_64x4d"), ("resnext101_32x16d", None)]
    + [("test_vit", SMALL_VIT)],
)
def test_a_bare_file_shows_its_backbone(name: str, found: str | None, tmp_path: Path) -> None:
    with torch.device("meta"):
        made = timm.create_model(name).state_dict(prefix="module.encoder_q.")
    state = {key: torch.zeros(()).expand(value.shape) for key, value in made.items()}
    assert guess_backbone(state) == found
    if name in ("resnet18", "test_vit"):
        torch.save({"state_dict": state}, tmp_path / "w.pth")
        assert backbone_of_weights(tmp_path / "w.pth") == found
        line = load_weights(build_backbone(found), tmp_path / "w.pth")
        assert " tensors from " in line
        assert ("; heads of 64 channels are assumed, which its file does not give" in line) == (name == "test_vit")


def test_a_network_with_another_name_is_found_by_the_record_of_its_file(tmp_path: Path) -> None:
    state = timm.create_model("convnext_atto").state_dict()
    torch.save({"arch": "convnext_atto", "state_dict": state}, tmp_path / "w.pth")
    assert backbone_of_weights(tmp_path / "w.pth") == "convnext_atto"
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match="do not show which backbone they belong to; name it with --backbone"):
        backbone_of_weights(tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").state_dict.keys() == state.keys()


@pytest.mark.parametrize("kind", ["vit_mae", "vit_msn", "another"])
def test_heads_and_epsilon_of_any_model_of_transformers_are_those_of_its_configuration(
    kind: str, tmp_path: Path
) -> None:
    """Shapes show neither: with timm's own, features would be slightly or completely wrong."""
    network = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {"model_type": kind, "num_attention_heads": 6, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, arguments = parse_name(backbone_of_weights(tmp_path))
    assert arguments == {"depth": 1, "num_heads": 6, "norm_eps": 1e-12, "pos_antialias": False}


def test_of_the_networks_in_a_folder_the_trained_one_is_taken(tmp_path: Path) -> None:
    """As of those in a file; the line names both."""
    state = moved(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)).state_dict()
    both = {f"student.{key}": value for key, value in state.items()}
    both |= {f"ema.{key}": torch.zeros_like(value) for key, value in state.items()}
    save_file(both, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    backbone, _, _, line = pretrained_backbone(tmp_path)
    assert torch.equal(backbone.net.model.cls_token, state["cls_token"])
    assert " under student.; not used: ema." in line


@pytest.mark.parametrize(("given", "found"), [(LUNIT, LUNIT), (IMAGENET, HALF), (None, HALF)])
def test_a_model_card_counts_where_a_folder_has_only_defaults(given: Any, found: Any, tmp_path: Path) -> None:
    notes = {"image_mean": given[0], "image_std": given[1]} if given else {}
    (tmp_path / "midnight").mkdir()
    (tmp_path / "midnight" / "preprocessor_config.json").write_text(json.dumps(notes))
    assert preprocessing(tmp_path / "midnight", tmp_path / "midnight", {})[:2] == found
    (tmp_path / "weights").symlink_to(tmp_path / "midnight")  # as the runs of a table have them
    assert preprocessing("weights", tmp_path / "weights", {})[:2] == found


def test_a_mean_without_a_std_counts_as_none(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "model.safetensors")
    dark = PixelSpec(mean=(0.1,) * 3, std=(0.2,) * 3)
    for made, processor, expected in (
        ({"mean": [0.5] * 3}, {}, None),
        ({"mean": [0.5] * 3}, {"image_std": [0.3] * 3}, None),
        ({"mean": [0.5] * 3}, {"image_mean": LUNIT[0], "image_std": LUNIT[1]}, LUNIT),
    ):
        config = {"architecture": "test_resnet", "pretrained_cfg": made}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
        assert preprocessing(tmp_path, tmp_path, config)[:2] == (expected or ((), ()))
        for images, usual in ((None, IMAGENET), (dark, (dark.mean, dark.std))):
            spec = pixels_of_weights(tmp_path, images)
            assert (spec.mean, spec.std) == (expected or usual)


def test_a_folder_of_grey_images_is_read_as_its_weights_need_them(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=0, in_chans=1).state_dict(), tmp_path / "model.safetensors")
    grey = {"model_args": {"in_chans": 1}, "pretrained_cfg": {"mean": [0.5], "std": [0.25]}}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", **grey}))
    backbone, spec, _, _ = pretrained_backbone(tmp_path)
    assert backbone.in_channels == 1 and spec == PixelSpec(channels=1, mean=(0.5,), std=(0.25,))


def test_an_old_configuration_of_timm_has_its_statistics_at_the_top(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "test_resnet", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 64, 64]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, spec, size, _ = pretrained_backbone(tmp_path)
    assert (spec.mean, spec.std, size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 64)


@pytest.mark.parametrize(
    ("notes", "statistics", "size"),
    [
        ({}, LUNIT, 224),
        ({"do_normalize": False}, ((0.0,) * 3, (1.0,) * 3), 224),
        ({"rescale_factor": 1 / 510}, tuple(tuple(2 * each for each in part) for part in LUNIT), 224),
        ({"rescale_factor": 0.00392156862, "do_rescale": True}, LUNIT, 224),
        (
            {"rescale_factor": 2 / 255, "rescale_offset": True},
            tuple(tuple((each + k) / 2 for each in LUNIT[1 - k]) for k in (1, 0)),
            224,
        ),
        ({"do_center_crop": False}, LUNIT, 256),
    ],
)
def test_settings_of_an_image_processor_count_as_far_as_it_uses_them(
    notes: Mapping[str, Any], statistics: Any, size: int, tmp_path: Path
) -> None:
    made = {"image_mean": LUNIT[0], "image_std": LUNIT[1], "size": {"shortest_edge": 256}, "crop_size": 224}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**made, **notes}))
    mean, std, side = preprocessing(tmp_path, tmp_path, {"model_type": "vit"})
    assert (mean, std) == (pytest.approx(statistics[0]), pytest.approx(statistics[1])) and side == size


@pytest.mark.parametrize("config", [{"architecture": "vit_tiny_patch16_224"}, {"num_attention_heads": None}])
@pytest.mark.parametrize("heads", [{}, {"num_heads": 3}])
def test_assumed_heads_of_a_width_of_its_own_are_reported(
    config: Mapping[str, Any], heads: Mapping[str, int], tmp_path: Path
) -> None:
    network = timm.create_model("vit_tiny_patch16_224", embed_dim=96, depth=1, num_heads=3, num_classes=0)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config, **heads, "mean": [0.5] * 3, "std": [0.5] * 3}))
    line = pretrained_backbone(tmp_path).line
    assert ("heads of 64 channels are assumed, which its folder does not give" in line) == (not heads)


def test_an_architecture_may_have_the_tag_of_its_weights(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "model.safetensors")
    for tag in ("r160_in1k", "mine"):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": f"test_resnet.{tag}"}))
        assert pretrained_backbone(tmp_path).backbone.name == "test_resnet"


@pytest.mark.parametrize("name", ["pretrained_cfg", "preprocess_cfg", "vision_config", "model_cfg", "model_args"])
def test_settings_that_are_no_object_are_refused(name: str, tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", name: "in1k"}))
    with pytest.raises(UserError, match=f"^{name} in the configuration of a model is not an object with settings"):
        pretrained_backbone(tmp_path)


def test_a_damaged_image_processor_or_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": ["a.safetensors"]}))
    with pytest.raises(UserError, match="weight_map in the configuration of a model is not an object"):
        is_published(tmp_path)
    for notes, message in (
        ({"image_processor": "ViTImageProcessor"}, "image_processor in the configuration of a model is not an object"),
        ({"rescale_factor": "1/255"}, "has no valid rescale_factor, image_mean or image_std; fetch it again"),
        ({"rescale_factor": 1, "image_mean": 0.5}, "has no valid rescale_factor, image_mean or image_std"),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(notes))
        with pytest.raises(UserError, match=message):
            preprocessing(tmp_path, tmp_path, {})
