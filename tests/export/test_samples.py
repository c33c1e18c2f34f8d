"""Files of samples, line by line."""

import json
from pathlib import Path

from cris_export.proof.samples import read_samples


def test_a_line_ends_with_its_newline_and_nowhere_else(tmp_path: Path) -> None:
    # Unicode has other line ends, which stand in JSON as they are.
    said = "the cup\u2028on the left\x85"
    path = tmp_path / "samples.jsonl"
    lines = [{"image": "desk.jpg", "expression": said}, {"image": "b.jpg", "expression": "pen"}]
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_bytes(text.encode() + b"\r\n")
    found = read_samples(path)
    assert [sample.expression for sample in found] == [said, "pen"]
