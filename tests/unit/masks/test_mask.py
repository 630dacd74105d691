# SPDX-License-Identifier: Apache-2.0
"""Masks of whole models: their layers and heads, numbers, refusals and files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from bertbench.common.errors import BadInput
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.masks.patterns import parse

STAR = parse("star")


def random_bits(seed: int = 0, n: int = 12) -> np.ndarray:
    bits = np.random.default_rng(seed).random((n, n)) < 0.3
    np.fill_diagonal(bits, True)
    return bits


def mixed() -> AttentionMask:
    """Two layers of two heads: each kind of a head's mask, and a layer that shares one."""
    offsets = np.array([False, True, False, True, True, False, False, False])
    return AttentionMask(((random_bits(), offsets), (STAR,)))


def test_layers_heads_and_lengths() -> None:
    mask = mixed()
    assert (mask.heads, mask.longest) == (2, 8)
    assert mask.layer(0, 8).shape == (2, 8, 8)
    assert mask.layer(1, 8).shape == (1, 8, 8)
    assert (mask.layer(0, 8)[0] == random_bits()[:8, :8]).all()
    i, j = np.indices((8, 8))
    assert (mask.layer(0, 8)[1] == np.isin(abs(i - j), (1, 3, 4))).all()
    for layer in range(2):
        assert (mask.layer(layer, 5) == mask.layer(layer, 8)[:, :5, :5]).all()
    shared = AttentionMask(((STAR,),))
    assert (shared.layer(11, 128) == STAR.bits(128)).all()


def test_a_shared_mask_serves_any_model_and_another_one_only_its_own() -> None:
    AttentionMask(((STAR,),)).check(layers=12, heads=12, length=512)
    mask = mixed()
    mask.check(layers=2, heads=2, length=8)
    for model, part in (
        ({"layers": 3, "heads": 2, "length": 8}, "has 2 layers, the model 3"),
        ({"layers": 2, "heads": 12, "length": 8}, "has 2 heads, the model 12"),
        ({"layers": 2, "heads": 2, "length": 9}, "is of 8 tokens, and sequences have up to 9"),
    ):
        with pytest.raises(BadInput, match=part):
            mask.check(**model)
    with pytest.raises(BadInput, match="none with 2"):
        mask.layer(2, 8)


def test_numbers() -> None:
    mask = mixed()
    per_layer = [mask.layer(at, 8).mean() for at in range(2)]
    assert mask.sparsity_ratio(8) == pytest.approx(1 - np.mean(per_layer))
    assert mask.nnz(8) == pytest.approx(64 * np.mean(per_layer))
    assert AttentionMask.of("star").nnz(128) == 634


def test_toeplitz_masks_have_offsets() -> None:
    for text in ("strided", "logsparse", "dense", "longformer:globals="):
        mask = AttentionMask.of(text)
        offsets = mask.offsets(0, 40)
        assert offsets is not None
        assert mask.is_toeplitz(40)
        assert (AttentionMask((tuple(offsets),)).layer(0, 40) == mask.layer(0, 40)).all()
    for text in ("fixed", "star", "bigbird", "star:block=8"):
        assert AttentionMask.of(text).offsets(0, 40) is None
    one_sided = np.tril(np.ones((6, 6), dtype=bool))
    assert AttentionMask(((one_sided,),)).offsets(0, 6) is None


@pytest.mark.parametrize("block", [1, 3, 4, 16, 64])
def test_blocks_by_brute_force(block: int) -> None:
    mask, n = mixed(), 8
    found, bits = mask.blocks(0, n, block), mask.layer(0, n)
    count = -(-n // block)
    assert found.shape == (2, count, count)
    for h, i, j in np.ndindex(found.shape):
        part = bits[h, i * block : (i + 1) * block, j * block : (j + 1) * block]
        assert found[h, i, j] == part.any()
    assert mask.blocks_kept(n, 64) == 1.0


def test_empty_rows_are_refused_with_their_place() -> None:
    empty = random_bits()
    empty[3] = False
    late = random_bits()
    late[0, :2], late[0, 5] = False, True  # only a key that shorter sequences lack
    for layers, place in (
        (((STAR,), (STAR, empty)), "layer 1, head 1, row 3.*sequence of 4 tokens"),
        (((late,),), "layer 0, head 0, row 0.*sequence of 2 tokens"),
        (((np.array([False, False, True]),),), "layer 0, head 0, row 0"),
    ):
        with pytest.raises(BadInput, match=place):
            AttentionMask(layers)
    without_diagonal = ~np.eye(5, dtype=bool)
    AttentionMask(((without_diagonal,),))
    AttentionMask(((np.array([False, True, False]),),))
    AttentionMask(((np.ones((1, 1), dtype=bool),),))


@pytest.mark.parametrize(
    "layers",
    [
        (),
        ((),),
        ((STAR, STAR), (STAR, STAR, STAR)),
        ((np.ones((3, 4), dtype=bool),),),
        ((np.ones((3, 3)),),),
        ((np.ones((2, 2, 2), dtype=bool),),),
        ((np.ones(0, dtype=bool),),),
    ],
)
def test_what_is_no_mask_is_refused(layers: tuple) -> None:
    with pytest.raises(BadInput):
        AttentionMask(layers)


# -- files -----------------------------------------------------------------------------------------


def test_files_are_read_back(tmp_path: Path) -> None:
    mask = mixed()
    assert [p.name for p in mask.save(tmp_path / "m.json")] == ["m.json", "m.safetensors"]
    again = AttentionMask.of(str(tmp_path / "m.json"))
    assert again.hash == mask.hash
    assert all((again.layer(at, 8) == mask.layer(at, 8)).all() for at in range(2))
    only = AttentionMask(((parse("bigbird:seed=3"),),))
    assert len(only.save(tmp_path / "p.json")) == 1
    assert AttentionMask.load(tmp_path / "p.json").layers == [[parse("bigbird:seed=3")]]


def test_the_hash_is_of_the_content() -> None:
    assert AttentionMask.of("star").hash == AttentionMask.of("star:window=1,globals=0").hash
    flipped = random_bits()
    flipped[0, -1] ^= True
    masks = (mixed(), AttentionMask.of("star"), AttentionMask.of("star:window=2"))
    more = [AttentionMask(((b,),)) for b in (random_bits(), flipped, random_bits()[:8, :8])]
    assert len({m.hash for m in (*masks, *more)}) == 6
    assert AttentionMask(((random_bits(),),)).hash == more[0].hash


def test_a_name_without_the_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"ends in \.json"):
        mixed().save(tmp_path / "m.txt")
    with pytest.raises(BadInput, match="cannot be written"):
        mixed().save(tmp_path / "absent" / "m.json")


def test_another_file_s_tensors_are_not_replaced(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    with pytest.raises(BadInput, match=r"would replace .*model\.safetensors"):
        mixed().save(tmp_path / "model.json")
    assert weights.read_bytes() == b"weights"
    mixed().save(tmp_path / "m.json")
    mixed().save(tmp_path / "m.json")  # a mask may be replaced


def test_an_array_of_many_heads_is_read_once() -> None:
    class Counted(np.ndarray):
        reads = 0

        def tobytes(self, *_: object) -> bytes:  # type: ignore[override]
            Counted.reads += 1
            return super().tobytes()

    bits = np.eye(16, dtype=bool)
    shared = bits.view(Counted)
    many = AttentionMask([[shared] * 1000] * 3)
    _, arrays = many.content()
    assert (list(arrays), Counted.reads) == (["0"], 1)
    assert AttentionMask([[bits.copy() for _ in range(1000)]] * 3).hash == many.hash


def write(path: Path, **changes: object) -> None:
    content = {"format": "bertbench-attention-mask", "version": 1, "layers": [["star"]]}
    path.write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"format": "other"}, "not an attention mask"),
        ({"version": 2}, "version is not 1"),
        ({"more": 1}, "unknown key 'more'"),
        ({"layers": None}, "not a list of lists"),
        ({"layers": [[]]}, "not a list of lists"),
        ({"layers": []}, "1 to 4096 layers"),
        ({"layers": [["no"]]}, "unknown pattern 'no'"),
        ({"layers": [[{"bits": "0"}]]}, "neither pattern nor bits nor offsets"),
        ({"layers": [[1]]}, "neither pattern nor bits nor offsets"),
        ({"layers": [[{}]]}, "neither pattern nor bits nor offsets"),
        ({"tensors": {"file": "../m.safetensors", "sha256": ""}}, "in the same folder"),
        ({"tensors": {"file": "m.safetensors", "sha256": "0"}}, "m.safetensors: No such file"),
        ({"tensors": []}, "name no file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: dict, part: str) -> None:
    write(tmp_path / "m.json", **changes)
    with pytest.raises(BadInput) as refused:
        AttentionMask.load(tmp_path / "m.json")
    assert part in str(refused.value)
    assert str(tmp_path / "m.json") in str(refused.value)


def test_damaged_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    _, tensors = mixed().save(path)
    good = tensors.read_bytes()
    tensors.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(BadInput, match="sha256 differs"):
        AttentionMask.load(path)
    content = json.loads(path.read_text())
    content["tensors"]["sha256"] = hashlib.sha256(b"no tensors").hexdigest()
    path.write_text(json.dumps(content))
    tensors.write_bytes(b"no tensors")
    with pytest.raises(BadInput, match=r"m\.safetensors: "):
        AttentionMask.load(path)
    mixed().save(path)
    content = json.loads(path.read_text())
    content["layers"][0] = [{"offsets": "0"}]
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="neither pattern nor bits nor offsets"):
        AttentionMask.load(path)
    path.write_text("[" * 500 + "]" * 500)
    with pytest.raises(BadInput, match="nested too deeply"):
        AttentionMask.load(path)
