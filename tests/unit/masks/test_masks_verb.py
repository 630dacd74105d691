# SPDX-License-Identifier: Apache-2.0
"""``bertbench masks``: numbers, drawings and refusals."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from bertbench.benchmarks import resolve
from bertbench.common.cli.masks import draw, main, png
from bertbench.common.errors import BadInput
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.masks.patterns import PATTERNS, parameters, parse


def test_all_patterns_with_their_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "4,852" in shown
    for name in PATTERNS:
        assert all(f" {key}=" in shown for key in parameters(name))
    assert max(map(len, shown.splitlines())) <= 80


def test_named_masks_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from bertbench.common.masks.mask import AttentionMask

    file = tmp_path / "m.json"
    AttentionMask(((parse("star"), parse("dense")),)).save(file)
    assert main(["--pattern", "logsparse", "--pattern", str(file), "--length", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["masks"]
    assert first["nnz"] == parse("logsparse").bits(64).sum()
    assert first["sparsity_ratio"] == pytest.approx(1 - parse("logsparse").bits(64).mean())
    assert (first["toeplitz"], second["toeplitz"]) == (True, False)
    assert (second["heads"], second["nnz"]) == (2, (parse("star").bits(64).sum() + 4096) / 2)
    assert first["blocks_kept"]["16"] <= 1 == first["blocks_kept"]["64"]


@pytest.mark.parametrize("length", [0, -5])
@pytest.mark.parametrize("shape", [(16, 16), (16,)])
def test_saved_masks_have_no_length_below_1(
    length: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    AttentionMask([[np.ones(shape, dtype=bool)]]).save(tmp_path / "m.json")
    with pytest.raises(BadInput, match=f"length is {length}: give 1 to 16"):
        main(["--pattern", str(tmp_path / "m.json"), "--length", str(length)])


def test_a_drawing_has_every_entry() -> None:
    bits = parse("fixed:stride=5").bits(41)
    text = draw(bits).splitlines()
    assert (len(text), set(map(len, text))) == (11, {21})
    dots = {0: 0x01, 1: 0x02, 2: 0x04, 3: 0x40}, {0: 0x08, 1: 0x10, 2: 0x20, 3: 0x80}
    for i, j in np.ndindex(bits.shape):
        code = ord(text[i // 4][j // 2]) - 0x2800
        assert bool(code & dots[j % 2][i % 4]) == bits[i, j]
    assert max(map(len, draw(parse("star").bits(1000)).splitlines())) <= 80


def test_a_picture_has_every_entry(tmp_path: Path) -> None:
    bits = parse("bigbird").bits(100)
    assert main(["--pattern", "bigbird", "--length", "100", "--png", str(tmp_path / "m.png")]) == 0
    raw = (tmp_path / "m.png").read_bytes()
    assert raw == png(bits)
    parts, at = {}, 8
    while at < len(raw):
        (size,) = struct.unpack(">I", raw[at : at + 4])
        kind, data = raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]
        assert struct.unpack(">I", raw[at + 8 + size : at + 12 + size]) == (
            zlib.crc32(kind + data),
        )
        parts[kind], at = data, at + 12 + size
    side, height, depth, colour = struct.unpack(">IIBB", parts[b"IHDR"][:10])
    assert (side, height, depth, colour) == (1000, 1000, 1, 0)
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(side, -1)
    assert not rows[:, 0].any()
    black = np.unpackbits(rows[:, 1:], axis=1)[:, :side] == 0
    assert (black[::10, ::10] == bits).all()
    assert (black == bits.repeat(10, 0).repeat(10, 1)).all()


def test_more_files_than_one_are_refused_with_the_reason(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        AttentionMask.of("star").save(str(tmp_path / name))
    words = ["--pattern", *map(str, sorted(tmp_path.glob("*.json")))]
    with pytest.raises(BadInput, match=r"arguments: .*b.json: where a pattern \(\*\) matches sev"):
        main(words)
    with pytest.raises(BadInput, match=r"arguments: absent.json\nusage"):
        main(["--pattern", "star", "absent.json"])
    with pytest.raises(BadInput, match=r"is not a flag: where a pattern \(\*\) matches several"):
        resolve("mini", ["--attention_mask", *words[1:]])


def test_a_mask_of_several_heads_says_what_is_drawn_and_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "m.json")
    AttentionMask([[parse("star"), parse("dense")]]).save(file)
    assert main(["--pattern", file, "--draw", "--head", "1"]) == 0
    shown = capsys.readouterr().out
    assert "all numbers are means over layers and heads\n" in shown
    assert "\nlayer 0, head 1 of 2; x: keys, y: queries\n" in shown
    assert main(["--pattern", "star"]) == 0
    assert "means" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--pattern", "no"], "known: dense, strided"),
        (["--pattern", "star", "--length", "0"], "1 to 16384"),
        (["--draw"], "of one mask"),
        (["--pattern", "star", "--draw", "--head", "1"], "--head 1: the mask has 1"),
        (["--pattern", "star", "--draw", "--layer", "-1"], "--layer -1"),
        (
            ["--pattern", "star", "--png", "absent/m.png"],
            "No such file or directory: make the folder first",
        ),
        (["--pattern", "absent.json"], "attention mask absent.json: No such file"),
    ],
)
def test_refusals(words: list[str], part: str) -> None:
    with pytest.raises(BadInput) as refused:
        main(words)
    assert part in str(refused.value)
