"""`python -m cris_train` is `cris-train`: what torchrun starts, once for each device."""

import sys

from cris_train.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
