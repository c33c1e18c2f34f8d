"""What the stages compute otherwise than the model, and what a traced graph is free of."""

import onnx_ir as ir
import pytest
import torch
from torch.testing import assert_close

from cris_export.graph.stages import TextStage, build_stages, take_end
from cris_export.graph.trace import trace_stages
from cris_train.model import Cris, CrisConfig
from tests.helpers.models import randomised

END = 49407


@pytest.fixture(scope="module")
def model() -> Cris:
    torch.manual_seed(0)
    return randomised(Cris(CrisConfig.tiny()))


TOKENS = torch.tensor(
    [
        [49406, 320, END, 0, 0, 0],
        [49406, 320, 1746, 533, 736, END],  # cut: the last one
        [49406, END, 320, END, 0, 0],  # a text that spells the end token out
        [49406, END, END, END, END, END],
        [0, 0, 0, 0, 0, 0],  # no expression: whatever ArgMax does with it
        [5, 7, 7, 6, 0, 0],
    ]
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_end_is_taken_as_by_argmax_and_bit_for_bit(dtype: torch.dtype) -> None:
    words = torch.randn(6, 6, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = words[torch.arange(6), TOKENS.argmax(dim=1)]
    assert torch.equal(take_end(words, TOKENS), expected)
    longest = torch.full((2, 77), END)
    longest[1, 0] = 49406
    words = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert torch.equal(take_end(words, longest), words[[0, 1], [0, 1]])


def test_ranks_of_tokens_are_exact_in_float32() -> None:
    """ONNX Runtime's CUDA ReduceMax of int64 goes through float32."""
    ranks = torch.arange(END * 77, END * 77 + 77)
    assert torch.equal(ranks.float().long(), ranks)


def test_text_stage_is_the_models(model: Cris) -> None:
    tokens = torch.zeros(3, model.config.word_len, dtype=torch.int64)
    tokens[:, :4] = torch.tensor([[9, 8, 7, END], [9, END, 7, END], [9, 8, END, 0]])
    expected = model.backbone.encode_text(tokens)
    for mine, truth in zip(TextStage(model)(tokens), expected, strict=True):
        assert_close(mine, truth)


def test_no_graph_computes_shapes(model: Cris) -> None:
    """Such nodes run on the CPU: ONNX Runtime's CUDA provider then refuses a free batch."""
    for name, traced in trace_stages(build_stages(model), model.config, 20).items():
        for node in traced.graph:
            assert node.op_type not in {"Shape", "Size"}, f"{node.name} of {name}"
            if node.op_type == "Reshape":
                shape = node.inputs[1]
                assert isinstance(shape, ir.Value)
                assert shape.is_initializer(), f"{node.name} of {name}"
