"""CLIP's vocabulary as a standard tokenizer.json, so that a runtime needs no open_clip."""

from pathlib import Path

import tokenizers
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import decoders, normalizers, pre_tokenizers, processors

from cris_deploy.words.cleaning import END, PATTERN, START
from cris_deploy.words.tokenizer import WORD_END, byte_pair_model


def build_tokenizer() -> tokenizers.Tokenizer:
    """Build CLIP's tokenizer in the Hugging Face format from open_clip's vocabulary.

    The file is complete: loaded by the `tokenizers` library alone it encodes ordinary text with
    the start and end tokens. `Tokenizer` of `cris_deploy.words.tokenizer` takes the byte-pair
    model and the special tokens from it and does CLIP's cleaning, which this format cannot
    express, itself.
    """
    clip = SimpleTokenizer()
    ranked = sorted(clip.bpe_ranks, key=clip.bpe_ranks.__getitem__)
    result = tokenizers.Tokenizer(byte_pair_model(clip.encoder, ranked))
    result.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
        ]
    )
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(f"(?i:{PATTERN})"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    result.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(START, clip.sot_token_id), (END, clip.eot_token_id)],
    )
    result.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace(WORD_END, " "), decoders.Strip(" ", 0, 1)]
    )
    result.add_special_tokens([START, END])
    return result


def write_tokenizer(path: Path) -> None:
    """Write CLIP's tokenizer.json to `path`; OSError if it cannot be."""
    # Its own `save` tells a full disk as an exception of no type.
    path.write_text(build_tokenizer().to_str(pretty=False), encoding="utf-8")
