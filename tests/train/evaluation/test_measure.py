"""What cannot be known of a checkpoint is asked for."""

from pathlib import Path

import pytest
import torch

from cris_deploy.errors import InputError
from cris_train import checkpoint
from cris_train.evaluation.measure import EvalOptions, measure
from cris_train.model import Cris, CrisConfig
from cris_train.synthetic.refer_files import write_scenes
from tests.helpers.models import randomised


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the reference writes it: nothing says for which length of expressions."""
    torch.manual_seed(0)
    # Heads of 64 channels and of the paper's number, which is what shapes are taken to mean.
    model = randomised(
        Cris(CrisConfig.tiny(text_width=64, text_heads=1, decoder_heads=8, neck_width=32))
    )
    path = checkpoint.save(tmp_path_factory.mktemp("reference") / "best.pth", model)
    raw = torch.load(path, weights_only=True)
    del raw["config"]
    torch.save(raw, path)
    return path


@pytest.mark.parametrize("split_by", ["umd", "google"])
def test_the_length_of_expressions_is_asked_for_on_g_ref(
    references: Path, tmp_path: Path, split_by: str
) -> None:
    write_scenes(tmp_path, {"val": 1}, seed=1)
    (tmp_path / "refs(unc).p").rename(tmp_path / f"refs({split_by}).p")
    options = {"data": tmp_path, "checkpoint": references, "split_by": split_by}
    with pytest.raises(InputError, match=r"--word-len: .* give 22 for one of G-Ref, 17 for"):
        measure(EvalOptions(**options))
    for given in (22, 17):
        found = measure(EvalOptions(**options, word_len=given))
        assert found.measured.word_len == given


def test_on_refcoco_it_is_17(references: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, {"val": 1}, seed=1)
    found = measure(EvalOptions(data=tmp_path, checkpoint=references))
    assert found.measured.word_len == 17
