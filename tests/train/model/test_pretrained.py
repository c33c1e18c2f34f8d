"""CLIP's weights into the backbone: by file, strictly, and nothing else touched."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import nn

from cris_deploy.errors import InputError
from cris_train.model import Cris, CrisConfig
from cris_train.model.pretrained import load_clip

CONFIG = CrisConfig.tiny(text_width=64, text_heads=1, pool_grid=2)


def clip_state(width: int = 8) -> dict[str, torch.Tensor]:
    """Of a small CLIP; it says its own shape."""
    torch.manual_seed(1)
    clip = CLIP(
        embed_dim=32,
        vision_cfg=CLIPVisionCfg(layers=(1, 1, 1, 1), width=width, image_size=64),
        text_cfg=CLIPTextCfg(width=64, heads=1, layers=1, vocab_size=49408, context_length=77),
        quick_gelu=True,
    )
    return {name: v for name, v in clip.state_dict().items() if name != "attn_mask"}


def clip_file(path: Path, width: int = 8) -> Path:
    torch.save(clip_state(width), path)
    return path


def openai_file(path: Path) -> Path:
    """As OpenAI publishes CLIP: a TorchScript archive, weights in half precision where it computes
    in it, and three numbers beside them."""

    def holder(values: dict[str, torch.Tensor]) -> nn.Module:
        """A module that holds tensors by their dotted names."""
        module = nn.Module()
        inner: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in values.items():
            head, _, rest = name.partition(".")
            if rest:
                inner.setdefault(head, {})[rest] = value
            elif value.is_floating_point():
                module.register_parameter(head, nn.Parameter(value))
            else:
                module.register_buffer(head, value)
        for head, own in inner.items():
            module.add_module(head, holder(own))
        return module

    state = {
        name: value.half() if name.endswith("weight") and value.ndim > 1 else value
        for name, value in clip_state().items()
    }
    for name, number in (("input_resolution", 64), ("context_length", 77), ("vocab_size", 49408)):
        state[name] = torch.tensor(number)
    torch.jit.script(holder(state)).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("make", [clip_file, openai_file])
def test_file_of_openais_kind(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path, clip = make(tmp_path / "clip.pt"), clip_state()
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
