"""CLIP's weights into the backbone: by file, strictly, and nothing else touched."""

from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from cris_deploy.errors import InputError
from cris_train.model import Cris, CrisConfig
from cris_train.model.pretrained import load_clip

CONFIG = CrisConfig.tiny(text_width=64, text_heads=1, pool_grid=2)


def clip_file(path: Path, width: int = 8) -> Path:
    """A small CLIP as OpenAI's files hold it: a state dict that says its own shape."""
    torch.manual_seed(1)
    clip = CLIP(
        embed_dim=32,
        vision_cfg=CLIPVisionCfg(layers=(1, 1, 1, 1), width=width, image_size=64),
        text_cfg=CLIPTextCfg(width=64, heads=1, layers=1, vocab_size=49408, context_length=77),
        quick_gelu=True,
    )
    state = {name: v for name, v in clip.state_dict().items() if name != "attn_mask"}
    torch.save(state, path)
    return path


def test_file_of_openais_kind(tmp_path: Path) -> None:
    path = clip_file(tmp_path / "clip.pt")
    clip = torch.load(path)
    torch.manual_seed(0)
    model = Cris(CONFIG)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_clip(model, str(path))
    for name, value in model.state_dict().items():
        inner = name.removeprefix("backbone.")
        expected = clip[inner] if name.startswith("backbone.") and inner in clip else before[name]
        # OpenAI's files are half precision in part; open_clip rounds them as such
        torch.testing.assert_close(value, expected, atol=1e-3, rtol=1e-3, msg=name)
    assert torch.equal(
        model.backbone.visual.attnpool.connect[0].weight,
        before["backbone.visual.attnpool.connect.0.weight"],
    )


def test_another_shape_is_refused(tmp_path: Path) -> None:
    model = Cris(CONFIG)
    before = model.backbone.visual.conv1.weight.clone()
    with pytest.raises(InputError, match="another shape"):
        load_clip(model, str(clip_file(tmp_path / "clip.pt", width=16)))
    assert torch.equal(model.backbone.visual.conv1.weight, before)


@pytest.mark.parametrize("source", ["nowhere.pt", "RN50", "RN50-none:openai"])
def test_unknown_sources(source: str) -> None:
    with pytest.raises(InputError, match="neither a file nor"):
        load_clip(Cris(CONFIG), source)


def test_a_file_that_is_no_clip(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"hello")
    with pytest.raises(InputError, match="cannot be loaded as CLIP"):
        load_clip(Cris(CONFIG), str(path))
