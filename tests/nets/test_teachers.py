"""Teachers of timm and of transformers against their own forward passes, and the grids that they are brought to."""

import json
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from densepath.core.errors import UserError
from densepath.core.records import record_text
from densepath.nets.backbones import build_backbone
from densepath.nets.frozen import Frozen
from densepath.nets.teachers import build_teacher
from densepath.nets.weights import save_backbone
from densepath.nets.weights.pretrained import backbone_of_weights
from densepath.sources.pixel_source import PixelSpec

transformers = pytest.importorskip("transformers")
HALF = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def seen_by(size, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD):
    """PIXELS as a network sees them: its own size and normalization."""
    ours = torch.tensor((IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)).view(2, 3, 1, 1)
    theirs = torch.tensor((mean, std)).view(2, 3, 1, 1)
    own = (PIXELS * ours[1] + ours[0] - theirs[0]) / theirs[1]
    return F.interpolate(own, (size, size), mode="bicubic", antialias=True) if size != 64 else own


def save(folder, config, model_type, notes=HALF):
    """A random model as its users have it."""
    torch.manual_seed(0)
    model = model_type(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if notes:
        (folder / "preprocessor_config.json").write_text(json.dumps(notes))
    return model


@torch.no_grad()
def test_a_timm_transformer_gives_its_patch_tokens(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).eval()
    save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    teacher = build_teacher("test_vit", str(tmp_path / "teacher.safetensors"))
    assert (teacher.stride, teacher.width) == (16, 64)
    for grid in (4, 6):
        pixels = seen_by(16 * grid, (0.5,) * 3, (0.5,) * 3)  # as timm says of this network
        torch.testing.assert_close(teacher(PIXELS, grid), model.forward_features(pixels)[:, 1:])


@torch.no_grad()
def test_views_of_any_normalization_and_grey_ones_are_shown_as_the_teacher_saw_its_own(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).eval()
    save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    teacher = build_teacher("test_vit", str(tmp_path / "teacher.safetensors"))
    for spec in (PixelSpec.default(1), PixelSpec(mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3)), PixelSpec()):
        colors = torch.rand(2, spec.channels, 64, 64)
        teacher.show(spec)
        expected = model.forward_features((colors.expand(-1, 3, -1, -1) - 0.5) / 0.5)[:, 1:]
        torch.testing.assert_close(teacher(spec.normalize(colors.clone()), 4), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="sees grey or RGB images, not 5 channels"):
        teacher.show(PixelSpec.default(5))


@torch.no_grad()
def test_a_convnet_gives_its_deepest_map(tmp_path):
    backbone = build_backbone("test_resnet").eval()
    notes = {"mean": json.dumps(HALF["image_mean"]), "std": json.dumps(HALF["image_std"])}
    save_backbone(tmp_path / "weights.safetensors", backbone, metadata=notes)
    teacher = build_teacher("test_resnet", str(tmp_path / "weights.safetensors"))
    expected = backbone(seen_by(128, HALF["image_mean"], HALF["image_std"]))[5].flatten(2).transpose(1, 2)
    torch.testing.assert_close(teacher(PIXELS, 4), expected)


@torch.no_grad()
def test_a_folder_of_timm_is_made_as_its_config_says(tmp_path):
    arguments = {"patch_size": 14, "img_size": 70, "reg_tokens": 3, "init_values": 0.1}
    torch.manual_seed(2)
    model = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True, **arguments).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    normalization = {"mean": HALF["image_mean"], "std": HALF["image_std"]}
    config = {"architecture": "test_vit", "model_args": arguments, "pretrained_cfg": normalization}
    (tmp_path / "config.json").write_text(json.dumps(config))
    teacher = build_teacher(str(tmp_path))
    assert (teacher.stride, teacher.width) == (14, 64)
    expected = model.forward_features(seen_by(56, **normalization))[:, 4:]
    torch.testing.assert_close(teacher(PIXELS, 4), expected)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    torch.testing.assert_close(build_teacher(str(tmp_path))(PIXELS, 4), expected)


def test_the_checkpoint_of_a_run_is_shown_what_the_run_was(tmp_path):
    spec = PixelSpec(mean=(0.7, 0.6, 0.7), std=(0.1,) * 3)
    state = timm.create_model("test_resnet", num_classes=0).state_dict(prefix="method.backbone.net.")
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": state}, tmp_path / "checkpoints" / "last.ckpt")
    (tmp_path / "config.yaml").write_text(record_text({"method": "byol", "pixels": spec.record()}))
    teacher = build_teacher("test_resnet", str(tmp_path))
    assert (teacher.mean, teacher.std) == (spec.mean, spec.std)


@pytest.mark.parametrize(("notes", "mean"), [(None, (0.5,) * 3), (HALF | {"image_mean": [0.2] * 3}, (0.2,) * 3)])
def test_a_model_of_transformers_is_shown_pixels_as_its_card_says(notes, mean, tmp_path):
    save(tmp_path / "midnight", transformers.ViTConfig(**TINY, image_size=32), transformers.ViTModel, notes)
    assert build_teacher(str(tmp_path / "midnight")).mean == mean


@pytest.mark.parametrize("notes", [{"image_mean": [0.5], "image_std": [0.25]}, {"image_mean": [0.2] * 3}])
def test_a_folder_without_three_means_and_deviations_is_shown_those_of_imagenet(notes, tmp_path):
    save(tmp_path, transformers.ViTConfig(**TINY, image_size=32), transformers.ViTModel, notes)
    teacher = build_teacher(str(tmp_path))
    assert (teacher.mean, teacher.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def test_a_teacher_that_is_shown_other_pixels_differs_from_that_of_a_training(tmp_path):
    held = Frozen("teacher")
    for notes in (HALF, HALF | {"image_mean": [0.2] * 3}):
        save(tmp_path, transformers.ViTConfig(**TINY, image_size=32), transformers.ViTModel, notes)
        saved = held.state_dict() | {"digest": held.digest.clone()}
        held.hold(build_teacher(str(tmp_path)))
    with pytest.raises(RuntimeError, match="the teacher differs from that of its training"):
        held.load_state_dict(saved)


@torch.no_grad()
def test_weights_under_the_names_of_transformers_are_a_teachers_too(tmp_path):
    options = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    model = save(tmp_path, transformers.ViTConfig(**options), transformers.ViTModel, None)
    teacher = build_teacher("vit_tiny_patch16_224", str(tmp_path / "model.safetensors"))
    tokens = model(seen_by(64, (0.5,) * 3, (0.5,) * 3), interpolate_pos_encoding=True).last_hidden_state
    assert teacher(PIXELS, 4).shape == tokens[:, 1:].shape
    torch.testing.assert_close(teacher.network.net.model.norm.weight, model.layernorm.weight)


def test_arguments_of_training_in_a_folder_do_not_hide_the_network(tmp_path):
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "test_resnet", "model_args": {"drop_path_rate": 0.1, "output_stride": 32}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert build_teacher(str(tmp_path)).width == 96
    assert backbone_of_weights(tmp_path) == "test_resnet(output_stride=32)"


@pytest.mark.parametrize(
    ("kind", "options", "others"),
    [
        ("ViT", {"patch_size": 16, "image_size": 64}, 1),
        ("Dinov2", {"patch_size": 14, "image_size": 56}, 1),
        ("Dinov2WithRegisters", {"patch_size": 14, "image_size": 70, "num_register_tokens": 4}, 5),
    ],
)
@torch.no_grad()
def test_a_transformer_of_transformers_gives_its_patch_tokens(tmp_path, kind, options, others):
    config = getattr(transformers, f"{kind}Config")(**{**TINY, **options})
    model = save(tmp_path, config, getattr(transformers, f"{kind}Model"))
    teacher = build_teacher(str(tmp_path))
    patch = options["patch_size"]
    assert (teacher.stride, teacher.width) == (patch, 32)
    for grid in (4, 6):
        extra = {"interpolate_pos_encoding": True} if kind == "ViT" else {}
        tokens = model(seen_by(grid * patch, HALF["image_mean"], HALF["image_std"]), **extra).last_hidden_state
        torch.testing.assert_close(teacher(PIXELS, grid), tokens[:, others:])


@torch.no_grad()
def test_clip_is_the_tower_that_is_compared_with_words(tmp_path):
    tower = {**TINY, "patch_size": 16, "image_size": 64}
    alone = save(tmp_path / "tower", transformers.CLIPVisionConfig(**tower), transformers.CLIPVisionModel, None)
    whole = transformers.CLIPConfig(
        text_config={**TINY, "vocab_size": 10, "max_position_embeddings": 8}, vision_config=tower, projection_dim=24
    )
    model = save(tmp_path / "whole", whole, transformers.CLIPModel, None)
    pixels = seen_by(64)
    tokens = alone(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(build_teacher(str(tmp_path / "tower"))(PIXELS, 4), alone.post_layernorm(tokens))
    teacher = build_teacher(str(tmp_path / "whole"))
    tokens = model.vision_model.post_layernorm(model.vision_model(pixels).last_hidden_state)
    # The class token, treated alike, is what CLIP compares.
    torch.testing.assert_close(model.visual_projection(tokens[:, 0]), model.get_image_features(pixels).pooler_output)
    torch.testing.assert_close(teacher(PIXELS, 4), model.visual_projection(tokens[:, 1:]))
    assert teacher.width == 24


@torch.no_grad()
def test_a_convnet_of_transformers_gives_its_deepest_map(tmp_path):
    config = transformers.ConvNextConfig(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1])
    model = save(tmp_path, config, transformers.ConvNextModel)
    expected = model(seen_by(128, HALF["image_mean"], HALF["image_std"])).last_hidden_state.flatten(2).transpose(1, 2)
    torch.testing.assert_close(build_teacher(str(tmp_path))(PIXELS, 4), expected)


def test_a_patch_of_the_teacher_lies_where_the_students_does(tmp_path):
    """A change at one position of the student's grid changes that feature most, for any patch size of the teacher."""
    save(tmp_path, transformers.Dinov2Config(**TINY, patch_size=14, image_size=56), transformers.Dinov2Model)
    teacher = build_teacher(str(tmp_path))
    for row, column in ((0, 0), (1, 3), (2, 1)):
        changed = PIXELS.clone()
        changed[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] *= -1
        distance = (teacher(changed, 4) - teacher(PIXELS, 4)).norm(dim=-1)
        assert (distance.argmax(1) == 4 * row + column).all()


def test_what_is_not_a_teacher_is_named(tmp_path):
    def refused(message, name, weights=""):
        with pytest.raises(UserError, match=message) as caught:
            build_teacher(str(name), str(weights))
        assert "\n" not in str(caught.value)

    refused("there is no teacher 'vit_smal'; give a timm name", "vit_smal")
    unknown = next(name for name in timm.list_models("vit_*") if not timm.models.is_model_pretrained(name))
    refused(f"timm has no weights of that name for the teacher '{unknown}'", unknown)
    refused("no config.json that names a model", tmp_path)
    for content, message in (("[1, 2", "config.json is not JSON"), ("[1]", "does not hold an object")):
        (tmp_path / "config.json").write_text(content)
        refused(message, tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "vit_of_tomorrow"}')
    refused("timm has no network 'vit_of_tomorrow'", tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "test_vit"}')
    refused("holds none of model.safetensors, pytorch_model.bin", tmp_path)
    refused("comes with its weights; leave out", tmp_path, "weights.pth")
    refused("mixer_s32_224 does not return feature maps", "mixer_s32_224", "random")
    # Weights of another network: fewer layers, more layers, other widths.
    other = timm.create_model("test_vit", num_classes=0, depth=8)
    save_file(other.state_dict(), tmp_path / "deeper.safetensors")
    refused("it also holds blocks.6", "test_vit", tmp_path / "deeper.safetensors")
    save_file({k: v for k, v in other.state_dict().items() if "blocks.0" in k}, tmp_path / "part.safetensors")
    refused("it lacks model.cls_token in that shape", "test_vit", tmp_path / "part.safetensors")
    refused("there are no weights to read at", "test_vit", tmp_path / "nowhere.pth")


def test_what_is_not_a_model_of_transformers_is_named(tmp_path, monkeypatch):
    def refused(message, folder):
        with pytest.raises(UserError, match=message) as caught:
            build_teacher(str(folder))
        assert "\n" not in str(caught.value)

    words = transformers.BertConfig(**TINY, vocab_size=10)
    save(tmp_path / "words", words, transformers.BertModel)
    refused("holds a BertModel, which does not take images", tmp_path / "words")
    model = save(tmp_path / "vit", transformers.ViTConfig(**TINY, image_size=64), transformers.ViTModel)
    (tmp_path / "vit" / "model.safetensors").rename(tmp_path / "whole.safetensors")
    torch.save(model.state_dict(), tmp_path / "vit" / "pytorch_model.bin")
    refused(r"holds no .safetensors file", tmp_path / "vit")
    state = load_file(tmp_path / "whole.safetensors")
    lost = next(key for key in state if "layernorm_before" in key)
    save_file({k: v for k, v in state.items() if k != lost}, tmp_path / "vit" / "model.safetensors", {"format": "pt"})
    refused("the weights in .* lack ", tmp_path / "vit")
    (tmp_path / "vit" / "model.safetensors").write_bytes(b"damaged")
    refused("cannot be loaded", tmp_path / "vit")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoModel": "own.Model"}}')
    (tmp_path / "code" / "own.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "code" / "model.safetensors").write_bytes(b"")
    refused("cannot be loaded", tmp_path / "code")
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(r"install it with pip install 'densepath\[transformers\]'", tmp_path / "words")
