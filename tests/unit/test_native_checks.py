# SPDX-License-Identifier: Apache-2.0
"""What kernels.c must not be given is an error with a name, before a pointer is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bertbench.common.data.batch import Tokens
from bertbench.common.data.tokenization import SPECIAL, BertTokenizer, SpecialIds
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.model.config import BERT_BASE
from bertbench.common.native import NativeUnavailable
from bertbench.common.optim.lamb import LambStep
from bertbench.common.prepare import masking

try:
    from bertbench.backends.cpu_ref.kernels import NativeOps, load
    from bertbench.backends.cpu_ref.lamb import native_lamb
    from bertbench.backends.cpu_ref.library import call
    from bertbench.backends.fused import draw_dropout

    load()
except NativeUnavailable as error:
    pytest.skip(f"no native kernels: {error}", allow_module_level=True)


def tokens(**changed: Any) -> Tokens:
    values: dict[str, Any] = {
        "input_ids": torch.tensor([1, 2, 3, 4]), "segment_ids": torch.tensor([0, 0, 1, 1]),
        "position_ids": torch.arange(4), "cu_seqlens": torch.tensor([0, 4]).int(),
        "lengths": (4,),
    }  # fmt: skip
    return Tokens(**values | changed)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("input_ids", 9, r"ids\[2\] is 9 and there are 9 words"),
        ("input_ids", -1, r"ids\[2\] is -1"),
        ("position_ids", 5, r"positions\[2\] is 5 and there are 5 places"),
        ("segment_ids", 2, r"types\[2\] is 2 and there are 2 kinds"),
        ("segment_ids", 1 << 62, r"types\[2\]"),
    ],
)
def test_ids_beyond_a_table(field: str, value: int, named: str) -> None:
    batch = tokens()
    getattr(batch, field)[2] = value
    tables = [torch.zeros(n, 16) for n in (9, 5, 2)]
    ops = NativeOps(torch.float32)
    with pytest.raises(BadInput, match=named):
        ops.embed(batch, *tables, torch.ones(16), torch.zeros(16), eps=1e-5, dropout=0.0)
    with pytest.raises(BadInput, match=named):
        ops.embed_sum(batch, *tables, dropout=0.1)


def test_a_table_of_one_token_type() -> None:
    tables = [torch.zeros(n, 16) for n in (9, 5, 1)]
    with pytest.raises(BadInput, match=r"types\[2\] is 1 and there are 1 kinds"):
        NativeOps(torch.bfloat16).embed_sum(tokens(), *tables, dropout=0.0)
    with pytest.raises(BadInput, match="type_vocab_size is 1"):
        dataclasses.replace(BERT_BASE, type_vocab_size=1)


@pytest.mark.parametrize("label", [7, -100])
def test_a_label_beyond_the_vocabulary(label: int) -> None:
    x, weight = torch.zeros(2, 16), torch.zeros(7, 16)
    with pytest.raises(BadInput, match=rf"labels\[1\] is {label} and there are 7 cols"):
        NativeOps(torch.float32).masked_cross_entropy(
            x, weight, torch.zeros(7), torch.tensor([0, label])
        )


@pytest.mark.parametrize(
    "changed",
    [
        {"cu_seqlens": torch.tensor([0, 5]).int()},
        {"cu_seqlens": torch.tensor([1, 4]).int()},
        {"cu_seqlens": torch.tensor([0, 9, 4]).int(), "lengths": (2, 2)},
        {"cu_seqlens": torch.tensor([0, -1, 4]).int(), "lengths": (2, 2)},
        {"cu_seqlens": torch.tensor([0, 4])},
        {"cu_seqlens": torch.tensor([0, 2, 4]).int()},
        {"lengths": (2, 2)},
    ],
    ids=str,
)
@pytest.mark.parametrize("trains", [True, False])
def test_sequences_that_do_not_divide_the_rows(changed: dict[str, Any], trains: bool) -> None:
    qkv = torch.zeros(4, 96, requires_grad=trains)
    with pytest.raises(ValueError, match="attention: "):
        NativeOps(torch.float32).attention(qkv, tokens(**changed), num_heads=2, dropout=0.0)


def test_sequences_that_change_after_they_were_checked() -> None:
    batch, ops = tokens(), NativeOps(torch.float32)
    ops.attention(torch.zeros(4, 96), batch, num_heads=2, dropout=0.0)
    batch.cu_seqlens[1] = 3
    with pytest.raises(ValueError, match="attention: "):
        ops.attention(torch.zeros(4, 96), batch, num_heads=2, dropout=0.0)


def test_attention_of_a_part_of_a_tensor() -> None:
    whole = torch.randn(4 * 96 + 1)
    ops = NativeOps(torch.float32)
    got = ops.attention(whole[1:].view(4, 96), tokens(), num_heads=2, dropout=0.0)
    want = ops.attention(whole[1:].clone().view(4, 96), tokens(), num_heads=2, dropout=0.0)
    assert torch.equal(got, want)


X, ROW, SUMS = torch.zeros(3, 16), torch.zeros(16), torch.zeros(32, 16)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((X.double(), SUMS), "x is torch.float64, not the compute type"),
        ((X, SUMS.half()), "sums is torch.float16, not torch.float32"),
        ((X, torch.zeros(15)), r"sums is of shape \[15\], not \[32, cols\]"),
        ((X[0], SUMS), r"x is of shape \[16\], not \[rows, cols\]"),
        ((torch.zeros(3, 32)[:, ::2], SUMS), "x is not a contiguous tensor in the host's memory"),
        ((X.to("meta"), SUMS), "x is not a contiguous tensor in the host's memory"),
        ((X, None), "sums is missing"),
        ((X, 3), "sums is not a contiguous tensor"),
        ((X,), "1 arguments, not 2"),
        ((X, SUMS, SUMS), "3 arguments, not 2"),
    ],
    ids=str,
)
def test_what_the_signature_does_not_allow(args: tuple[Any, ...], named: str) -> None:
    with pytest.raises(ValueError, match=f"column_sums: {named}"):
        call("column_sums", *args)


def test_parameters_that_go_together() -> None:
    out, numbers = torch.zeros(3, 16), (0, 1.0, 0)
    with pytest.raises(ValueError, match="beta is missing"):
        call("norm_forward", X, None, ROW, None, 1e-5, out, out, torch.zeros(3), *numbers)
    with pytest.raises(ValueError, match="rstd is given without gamma"):
        call("norm_forward", X, None, None, None, 1e-5, out, None, torch.zeros(3), *numbers)
    with pytest.raises(ValueError, match=r"out is torch\.bfloat16, not the compute type"):
        call("dropout", X, out.bfloat16(), *numbers)
    with pytest.raises(ValueError, match="threshold is 65536"):
        call("dropout", X, out, 65536, 1.0, 0)


def test_rows_too_long_for_the_stack() -> None:
    wide = torch.zeros(1, 1 << 17)
    ops = NativeOps(torch.float32)
    with pytest.raises(Unsupported, match="--kernels plain"):
        ops.norm(wide, wide[0], wide[0], eps=1e-5)


@pytest.mark.parametrize("probability", [-0.1, 1.0, 2.0, float("nan")])
def test_a_dropout_that_is_no_share(probability: float) -> None:
    with pytest.raises(ValueError, match="dropout of"):
        draw_dropout(probability)


def test_a_dropout_of_nearly_everything() -> None:
    assert draw_dropout(0.9999999).threshold == 65535


def spoil(name: str, index: int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(step: dict[str, Any]) -> None:
        step[name][index] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        spoil("exp_avgs", 0, torch.zeros(1)),
        spoil("exp_avg_sqs", 1, torch.zeros(6, 5)),
        spoil("exp_avgs", 1, torch.zeros(6, 4, dtype=torch.bfloat16)),
        spoil("grads", 0, torch.zeros(4)),
        spoil("segments", 1, 4),
        spoil("segments", 0, 0),
        lambda step: step["exp_avgs"].pop(),
        lambda step: step["segments"].append(1),
        lambda step: step.update(step=0),
    ],
)
def test_lamb_with_a_state_of_another_shape(change: Callable[[dict[str, Any]], None]) -> None:
    lists = ("params", "grads", "exp_avgs", "exp_avg_sqs")
    step: dict[str, Any] = {n: [torch.zeros(5), torch.zeros(6, 4)] for n in lists}
    step |= {"segments": [1, 3], "lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6}
    step |= {"weight_decay": 0.01, "step": 1}
    native_lamb(LambStep(**step))
    change(step)
    with pytest.raises(ValueError, match=r"lamb|zip"):
        native_lamb(LambStep(**step))


def test_lamb_of_nothing() -> None:
    native_lamb(LambStep([], [], [], [], [], 0.1, 0.9, 0.999, 1e-6, 0.0, 1))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("ids", [1, 2, 9]),
        ("ids", [1, 2, -1]),
        ("sentences", [0, 2, 4]),
        ("sentences", [0, 3, 2]),
        ("sentences", [1, 2, 3]),
        ("sentences", [0, 0, 3]),
        ("documents", [0, 3]),
        ("documents", [0, 1, 1, 2]),
    ],
)
def test_a_text_whose_offsets_lead_elsewhere(part: str, value: list[int]) -> None:
    parts = {"ids": [1, 2, 3], "sentences": [0, 2, 3], "documents": [0, 1, 2], part: value}
    dtypes = {"ids": np.int32}
    text = masking.TokenizedText(
        **{name: np.array(v, dtypes.get(name, np.int64)) for name, v in parts.items()}
    )
    special = SpecialIds(cls=1, sep=2, mask=3, vocab_size=9)
    with pytest.raises(ValueError, match=r"offsets|not ids"):
        masking.create_samples(text, special, masking.MaskingOptions())


def test_a_line_of_several_lines() -> None:
    with pytest.raises(ValueError, match="holds a line feed"):
        BertTokenizer([*SPECIAL, "a"]).encode_lines(["a\n\n\n", "a"])
