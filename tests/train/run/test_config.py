"""Recipes: what is shipped, what can be overridden, and what is refused with which words."""

from pathlib import Path

import pytest

from cris_deploy.documents import convert, plain
from cris_deploy.errors import InputError
from cris_deploy.execution.backends import Compute
from cris_train.cli.train import main
from cris_train.data.feed import Draw
from cris_train.data.target import TargetSampling
from cris_train.model import CrisConfig
from cris_train.run.recipe import (
    DeviceChoice,
    Lesson,
    Schedule,
    TrainConfig,
    read_config,
)
from cris_train.settings import differences

RECIPES = Path(__file__).parents[3] / "train" / "configs"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 3\nmodel: {input_size: 128}\n")
    return path


# What the paper says (CRIS, section 4, implementation details), as literals.
PAPER = {
    "learning_rate": 1e-4,
    "schedule": "step",
    "decay_epochs": [35],
    "decay_factor": 0.1,
    "epochs": 50,
    "images_per_batch": 64,
    "threshold": 0.35,
    "backbone_factor": 1.0,  # one rate; no other is named
    "full_rate_epochs": 0,
    "target": "nearest",  # equation 9: a pixel is the object's or it is not
    "precision": "fp32",  # none is named
}
# What its implementation does: the keys of its YAML files where they say it.
REFERENCE = {
    "learning_rate": 1e-4,  # base_lr
    "schedule": "step",
    "decay_epochs": [35],  # milestones
    "decay_factor": 0.1,  # lr_decay
    "epochs": 50,  # epochs
    "images_per_batch": 64,  # batch_size
    "expressions_per_image": 1,  # its data set: one of an object's sentences, at random
    "draw": "object",
    "sync_batch_norm": True,  # sync_bn
    "weight_decay": 0.0,  # weight_decay
    "clip_norm": 0.0,  # max_norm
    "warmup_steps": 0,
    "threshold": 0.35,  # its evaluation
    "backbone_factor": 0.1,  # lr_multi
    "full_rate_epochs": 1,  # its optimiser's rates until the scheduler's first step
    "target": "graded",  # its data set: a mask warped linearly and not cut
    "precision": "fp16",  # its training loop: autocast and a loss scaler
    "seed": 0,  # manual_seed
}
MODEL = {  # the same section, and the same YAML files
    "input_size": 416,
    "decoder_layers": 3,  # table 1's best, num_layers
    "decoder_heads": 8,  # num_head
    "decoder_ffn": 2048,  # dim_ffn
    "neck_width": 512,  # vis_dim
    "dropout": 0.1,
    "contrastive": True,
}


@pytest.mark.parametrize("data", ["refcoco", "refcoco+", "refcocog_umd", "refcocog_google"])
@pytest.mark.parametrize("architecture", ["r50", "r101"])
@pytest.mark.parametrize("name", ["paper", "reference"])
def test_shipped_recipes_are_the_published_ones(data: str, architecture: str, name: str) -> None:
    shipped = RECIPES / f"{data}_{architecture}.yaml"
    config = read_config(shipped, [] if name == "reference" else [f"recipe={name}"])
    values = plain(config)
    for key, published in (PAPER if name == "paper" else REFERENCE).items():
        assert values[key] == published, key
    for key, published in MODEL.items():
        assert values["model"][key] == published, key
    # The same section: at most 17 tokens on RefCOCO and RefCOCO+, 22 on G-Ref.
    assert config.model.word_len == (22 if data.startswith("refcocog") else 17)
    # CLIP's two ResNets: blocks in each stage and the width of the joint space.
    wide, blocks = (1024, (3, 4, 6, 3)) if architecture == "r50" else (512, (3, 4, 23, 3))
    assert (config.model.embed_dim, config.model.image_layers) == (wide, blocks)
    folder, _, split_by = data.partition("_")
    assert (config.data, config.split_by) == (f"data/{folder}", split_by or "unc")
    assert config.clip == f"{architecture.replace('r', 'RN')}-quickgelu:openai"
    assert config.output == f"runs/{data}_{architecture}"


def test_a_published_recipe_gives_way_to_what_is_said(recipe: Path) -> None:
    recipe.write_text("recipe: reference\nepochs: 60\n")
    config = read_config(recipe, ["precision=bf16"])
    assert (config.epochs, config.precision) == (60, Compute.BF16)
    assert (config.full_rate_epochs, config.target) == (1, TargetSampling.GRADED)
    assert read_config(recipe, ["recipe=null"]) == TrainConfig(epochs=60)
    # Without a name, what a recipe of an earlier version left out means what it did.
    before = TrainConfig()
    assert (before.backbone_factor, before.full_rate_epochs) == (0.1, 0)
    assert before.target is TargetSampling.NEAREST


@pytest.mark.parametrize("name", ["papr", "3", "[paper]", "refcoco_r50"])
def test_a_recipe_of_another_name(recipe: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"recipe is .*, expected paper or reference, or drop it"):
        read_config(recipe, [f"recipe={name}"])


def test_weights_to_start_from_replace_those_of_the_file() -> None:
    shipped = RECIPES / "refcoco_r50.yaml"
    config = read_config(shipped, ["init=best.pth"])
    assert (config.init, config.clip) == ("best.pth", None)
    with pytest.raises(InputError, match="clip and init both"):
        read_config(shipped, ["init=best.pth", "clip=RN50.pt"])


def test_every_recipe_that_is_shipped_can_be_read() -> None:
    recipes = sorted(RECIPES.glob("*.yaml"))
    assert len(recipes) >= 9
    for path in recipes:
        read_config(path)


def test_demo_recipe_means_what_it_did() -> None:
    config = read_config(RECIPES / "demo.yaml")
    assert config.lessons == (
        Lesson(samples=60_000, max_words=3, input_size=128),
        Lesson(samples=250_000, input_size=128),
        Lesson(samples=110_000),
    )
    assert (config.draw, config.images_per_batch, config.expressions_per_image) == (
        Draw.IMAGE,
        16,
        4,
    )
    assert (config.target, config.precision) == (TargetSampling.COVERAGE, Compute.BF16)
    assert (config.schedule, config.warmup_steps, config.final_factor) == (
        Schedule.COSINE,
        200,
        0.01,
    )
    assert (config.learning_rate, config.backbone_factor) == (1e-3, 1.0)
    assert (config.weight_decay, config.clip_norm) == (0.02, 1.0)
    assert config.cache


def test_overrides(recipe: Path) -> None:
    words = ["seed=5", "model.word_len=22", "learning_rate=1e-3", "precision=bf16", "clip=a:b"]
    words += ["model.image_layers=[3, 4, 23, 3]", "decay_epochs=[3, 4]", "epochs=5", "ema=0"]
    config = read_config(recipe, [*words, "device=cpu", "model.dropout=0", "model.contrastive=no"])
    assert (config.seed, config.model.word_len, config.model.input_size) == (5, 22, 128)
    assert (config.learning_rate, config.clip) == (1e-3, "a:b")
    assert (config.precision, config.device) == (Compute.BF16, DeviceChoice.CPU)
    assert config.model.image_layers == (3, 4, 23, 3)
    assert (config.decay_epochs, config.ema) == ((3, 4), 0.0)
    assert not config.model.contrastive
    assert read_config(recipe, ["clip=null"]).clip is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sead=1", "sead is not known; did you mean seed?"),
        ("learning_rat=1", "did you mean learning_rate?"),
        ("word_len=22", "word_len is not known; did you mean model.word_len?"),
        ("model.word_length=22", "model.word_length is not known; did you mean word_len"),
        ("model.seed=1", "model.seed is not known"),
        ("zzz=1", "zzz is not known; known: accumulate"),
        ("seed", "'seed': overrides have the form key=value"),
        ("=3", "key=value"),
        ("seed=[", "not YAML"),
        ("seed=many", 'seed is "many", expected an integer'),
        ("seed=true", "seed is true, expected an integer"),
        ("seed=1.5", "seed is 1.5, expected an integer"),
        ("seed=-1", "seed is -1, expected an integer >= 0"),
        ("seed.x=1", "'seed.x=1': seed has no settings of its own"),
        ("compile=3", "compile is 3, expected true or false"),
        ("output=3", "output is 3, expected a string"),
        ("learning_rate=fast", 'learning_rate is "fast", expected a number'),
        ("learning_rate=true", "learning_rate is true, expected a number"),
        ("learning_rate=.nan", "learning_rate is NaN, expected a number"),
        ("learning_rate=7", "learning_rate is 7, expected a number"),
        ("images_per_batch=0", "images_per_batch is 0, expected an integer >= 1"),
        ("accumulate=3", "images_per_batch is 64 and must divide by accumulate, 3"),
        ("threshold=2", "threshold is 2, expected a number <= 1"),
        ("ema=1", "ema is 1, expected a number < 1"),
        ("precision=int4", 'precision is "int4", expected fp32 or bf16 or fp16'),
        ("precision=int8", "precision is int8, expected fp32 or bf16 or fp16"),
        ("device=cuda:1", 'device is "cuda:1", expected auto or cpu or cuda'),
        ("schedule=linear", 'schedule is "linear", expected step or cosine'),
        ("decay_epochs=35", "decay_epochs is 35, expected a list"),
        ("decay_epochs=[40, 35]", "decay_epochs must rise"),
        ("decay_epochs=[x]", r'decay_epochs\[0\] is "x", expected an integer'),
        ("model=3", "model is 3, expected an object"),
        ("model.word_len=99", "model: word_len must be 3 to 77"),
        ("model.image_layers=[1, 2]", "model.image_layers is .* expected a list of length 4"),
        ("lessons=[{sample: 3}]", r"lessons\[0\].sample is not known; did you mean samples?"),
        ("lessons=[{max_words: 3}]", r"lessons\[0\].samples is missing"),
        ("lessons=[{samples: 0}]", r"lessons\[0\].samples is 0, expected an integer >= 1"),
        ("lessons=[{samples: 9, max_words: 0}]", "max_words is 0, expected an integer >= 1"),
        ("lessons=[{samples: 9, input_size: 100}]", "expected an integer that's a multiple of 32"),
        ("lessons=[{samples: 9, crops: 40}]", "expected an integer that's a multiple of 32"),
        ("lessons=[{samples: 9}]", "with lessons use schedule: cosine"),
        ("full_rate_epochs=-1", "full_rate_epochs is -1, expected an integer >= 0"),
    ],
)
def test_refused_overrides(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_config(recipe, ["log_every=2", override])
    assert override in str(error.value)


def test_two_answers_to_one_question(recipe: Path) -> None:
    with pytest.raises(InputError, match="epochs and lessons both say how long"):
        read_config(RECIPES / "demo.yaml", ["epochs=3"])
    assert read_config(RECIPES / "demo.yaml", ["epochs=3", "lessons=[]"]).epochs == 3
    with pytest.raises(InputError, match="clip and init both"):
        read_config(recipe, ["clip=a:b", "init=x.pth"])
    with pytest.raises(InputError, match="compile and recompute exclude each other"):
        read_config(recipe, ["compile=true", "recompute=true"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [", "not YAML"),
        ("- 3\n", "expected keys and values"),
        ("", "expected keys and values"),
        (b"\xff\xfe\x00", "recipe.yaml: "),
    ],
)
def test_refused_files(recipe: Path, text: str | bytes, message: str) -> None:
    recipe.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        read_config(recipe)


def test_plain_values_and_back() -> None:
    config = TrainConfig(
        schedule=Schedule.COSINE, lessons=(Lesson(samples=9),), decay_epochs=(2, 3)
    )
    values = plain(config)
    assert convert(TrainConfig, values, "here") == config
    # As runs store them, which are gone on with by later versions.
    assert (values["decay_epochs"], values["schedule"], values["precision"]) == (
        [2, 3],
        "cosine",
        "fp32",
    )
    assert values["lessons"] == [
        {"samples": 9, "max_words": None, "input_size": None, "crops": None}
    ]
    assert plain(convert(TrainConfig, {"seed": 1}, "here")) == plain(TrainConfig(seed=1))
    other = plain(TrainConfig(model=CrisConfig(decoder_layers=2)))
    found = differences(other, plain(TrainConfig(seed=1)))
    assert found == {"model.decoder_layers": (2, 3), "seed": (0, 1)}


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.1e-2", ".1e-2", "1.e-3", "1.0e-3", "0.001"])
def test_numbers_without_a_dot(recipe: Path, text: str) -> None:
    recipe.write_text(f"learning_rate: {text}\nmodel: {{dropout: {text}}}\n")
    config = read_config(recipe, [f"ema={text}"])
    assert (config.learning_rate, config.model.dropout, config.ema) == (1e-3, 1e-3, 1e-3)


def test_console_refuses_in_one_line(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(tmp_path / "absent.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["--config", str(recipe), "imagesper_batch=2"]) == 2
    assert "did you mean images_per_batch?" in capsys.readouterr().err
    # Options may stand between overrides.
    assert main(["seed=1", "--config", str(recipe), "sead=1", "--resume"]) == 2
    assert "sead" in capsys.readouterr().err
