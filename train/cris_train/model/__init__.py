"""The CRIS model: one file per part, `cris.py` shows the whole.

Importing this package imports torch and open_clip; the runtime (`cris_deploy`) never does.
"""

from cris_train.model.config import CrisConfig
from cris_train.model.cris import Cris

__all__ = ["Cris", "CrisConfig"]
