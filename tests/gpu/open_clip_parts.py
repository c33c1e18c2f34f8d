"""The PyTorch model where open_clip is not installed: four of its files are enough.

`cris_train.model.backbone` takes two classes from `open_clip.modified_resnet` and two from
`open_clip.transformer`. These files import only `open_clip.utils`, `open_clip.pos_embed`, torch,
numpy and one class of torchvision, while `import open_clip` itself imports much more.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FILES = ("modified_resnet.py", "transformer.py", "utils.py", "pos_embed.py")


def provide(folder: Path | None) -> str | None:
    """Make `open_clip`'s parts importable from a folder that holds FILES; say why it cannot be."""
    if importlib.util.find_spec("open_clip") is not None:
        return None
    if folder is None:
        return "open_clip is not installed (or give --open-clip FOLDER with its four files)"
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        return f"{folder} lacks {', '.join(missing)} of open_clip"
    package = ModuleType("open_clip")
    package.__path__ = [str(folder)]
    sys.modules["open_clip"] = package
    if importlib.util.find_spec("torchvision") is None:
        _provide_torchvision()
    return None


def _provide_torchvision() -> None:
    # Named in open_clip.utils, and used there only to freeze a model, which nobody does here.
    from torch import nn

    misc = ModuleType("torchvision.ops.misc")
    misc.FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})
    for name in ("torchvision", "torchvision.ops"):
        module = ModuleType(name)
        module.__path__ = []
        sys.modules[name] = module
    sys.modules[misc.__name__] = misc
