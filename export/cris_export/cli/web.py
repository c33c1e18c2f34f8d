"""`cris-export web`: a bundle becomes a page that finds masks in the browser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cris_deploy.cli import Parser, add_trust, guarded, open_bundle
from cris_export.errors import ParityError

EXIT_PARITY = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder and print its size; exit 0, 1 if it misses parity, 2 for unusable input."""
    args = _parser().parse_args(argv)
    return guarded("cris-export", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    from cris_export.web.graphs import Weights
    from cris_export.web.site import write_site

    try:
        report = write_site(
            open_bundle(args),
            args.folder,
            modules=args.modules,
            weights=Weights(args.weights) if args.weights else None,
            scene=args.scene,
            gpu=args.gpu,
        )
    except ParityError as error:
        print(f"cris-export: {error}", file=sys.stderr)
        return EXIT_PARITY
    parity = report.parity
    print(
        f"{parity.samples} samples: mean mask IoU {parity.mean_iou:.5f}, worst "
        f"{parity.worst_iou:.5f}, logits within {parity.max_logit_error:.2g} of FP32 PyTorch"
    )
    print(
        f"{report.folder}  (model {report.model_bytes / 1e6:.1f} MB, with the page and its runtime "
        f"{report.page_bytes / 1e6:.1f} MB; weights {report.weights})"
    )
    print(f"look at it: python -m http.server --directory {report.folder}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-export web",
        description="Write a folder that any host of static files serves: a page that finds masks\n"
        "in the browser, by the bundle's own graphs in ONNX Runtime's WebAssembly or WebGPU.",
        examples=(
            "cris-export web scenes.bundle page/ --modules node_modules",
            "cris-export web scenes.bundle page/ --weights fp16 --gpu",
        ),
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="what cris-export wrote")
    add_trust(parser)
    add("folder", type=Path, metavar="FOLDER", help="where the page goes; a page there is replaced")
    add(
        "--weights",
        choices=["fp32", "fp16"],
        help="how weights are stored; fp16 is half the size, computed in float32 (as in BUNDLE)",
    )
    add(
        "--modules",
        type=Path,
        default=Path("node_modules"),
        metavar="DIR",
        help="npm's folder with onnxruntime-web and @huggingface/tokenizers (node_modules)",
    )
    add("--scene", type=Path, metavar="DIR", help="folder with scene.json: what is shown at first")
    add("--gpu", action="store_true", help="let the browser's GPU compute, too: 28 MB more")
    return parser
