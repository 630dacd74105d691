# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="untyped-decorator,no-untyped-def"
"""The kernels: one program for a row, or for a share of the rows where columns are summed.

Activations are of any floating type, computed in float32; tables, gamma, beta and sums are float32.
Dropout is that of ``cpu_ref``'s kernels (vec.h): a hash of (seed, row, column), so that both drop
the same elements. ``cols`` is the row's length and BLOCK the next power of two.

With EIGHT a kernel also stores its rows as 8-bit floats (fp8.py): ``values`` beside ``scales``,
float32 [T].
"""

from __future__ import annotations

import triton
import triton.language as tl

_for_any_batch = triton.jit(
    do_not_specialize=["seed", "threshold", "rows", "share", "programs"],
    do_not_specialize_on_alignment=["seed", "threshold", "rows", "share", "programs"],
)
"""Compiles once for all numbers of rows, and not within a step that is the first with 16 n."""
INNER: tl.constexpr = tl.constexpr(1)
"""Dropout lies before the residual's addition: norm_backward also returns its gradient."""
OUTER: tl.constexpr = tl.constexpr(2)
"""Dropout lies behind the norm, as in the embeddings."""


@triton.jit
def _kept(seed, row, column, threshold):
    """Whether dropout keeps elements: 16 random bits are at least ``threshold``."""
    z = seed.to(tl.uint64) + (row.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    first, second = z.to(tl.uint32), (z >> 32).to(tl.uint32)
    x = (column // 32 * 16 + column % 16).to(tl.uint32)  # two columns share a hash
    x = x * 0x9E3779B9 + first
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = ((x ^ (x >> 15)) + second) * 0x846CA68B
    x = x ^ (x >> 16)
    bits = tl.where(column % 32 < 16, x & 0xFFFF, x >> 16)
    return bits.to(tl.int32) >= threshold


@triton.jit
def _normalised(z, inside, cols, eps):
    """Return z less its mean over its deviation, and 1 / deviation."""
    difference = tl.where(inside, z - tl.sum(z, 0) / cols, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(difference * difference, 0) / cols + eps)
    return difference * rstd, rstd


@triton.jit
def _store_eight(z, values, scales, row, at, inside, there):
    """Store a row as E4M3, with the scale that maps its largest magnitude to the format's, 448.

    A row of zeros gets 1; ``there``: whether the row exists.
    """
    largest = tl.max(tl.abs(z), 0)
    scale = tl.where(largest > 0, largest / 448.0, 1.0)
    # The quotient may round above 448; a number that is none stays so.
    z = tl.maximum(z / scale, -448.0, propagate_nan=tl.PropagateNan.ALL)
    z = tl.minimum(z, 448.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(values + at, z.to(values.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale, mask=there)


@triton.jit
def eight(x, values, scales, cols, BLOCK: tl.constexpr):
    """values [T, N] = x in 8 bits, a scale for each row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < cols
    at = row * cols + column
    z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    _store_eight(z, values, scales, row, at, inside, row >= 0)


@_for_any_batch
def embed_forward(
    ids, positions, types, word, position, token_type, gamma, beta, out, xhat, rstd_out,
    seed, threshold, scale, eps, cols,
    BLOCK: tl.constexpr, NORM: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """out [T, H] = dropout(norm(the sum of a token's rows of three tables))."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < cols
    z = tl.load(word + tl.load(ids + row) * cols + column, mask=inside, other=0.0)
    z += tl.load(position + tl.load(positions + row) * cols + column, mask=inside, other=0.0)
    z += tl.load(token_type + tl.load(types + row) * cols + column, mask=inside, other=0.0)
    at = row * cols + column
    if NORM:
        z, rstd = _normalised(z, inside, cols, eps)
        tl.store(xhat + at, z.to(xhat.dtype.element_ty), mask=inside)
        tl.store(rstd_out + row, rstd)
        z = z * tl.load(gamma + column, mask=inside, other=0.0)
        z += tl.load(beta + column, mask=inside, other=0.0)
    if DROP:
        z = tl.where(_kept(seed, row, column, threshold), z * scale, 0.0)
    tl.store(out + at, z.to(out.dtype.element_ty), mask=inside)


@_for_any_batch
def norm_forward(
    x, residual, gamma, beta, out, xhat, rstd_out, values, scales, seed, threshold, scale, eps,
    cols, BLOCK: tl.constexpr, RESIDUAL: tl.constexpr, NORM: tl.constexpr, DROP: tl.constexpr,
    EIGHT: tl.constexpr,
):  # fmt: skip
    """out [T, H] = norm(dropout(x) + residual), each part where its constant says so."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < cols
    at = row * cols + column
    z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if DROP:
        z = tl.where(_kept(seed, row, column, threshold), z * scale, 0.0)
    if RESIDUAL:
        z += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        z, rstd = _normalised(z, inside, cols, eps)
        tl.store(xhat + at, z.to(xhat.dtype.element_ty), mask=inside)
        tl.store(rstd_out + row, rstd)
        z = z * tl.load(gamma + column, mask=inside, other=0.0)
        z += tl.load(beta + column, mask=inside, other=0.0)
    tl.store(out + at, z.to(out.dtype.element_ty), mask=inside)
    if EIGHT:
        _store_eight(z, values, scales, row, at, inside, row >= 0)


@_for_any_batch
def norm_backward(
    dy, xhat, rstd_in, gamma, dz_out, dx_out, partial, values, scales, seed, threshold, scale,
    rows, cols, share, BLOCK: tl.constexpr, DROP: tl.constexpr, EIGHT: tl.constexpr,
):  # fmt: skip
    """Gradients of norm_forward on a share of the rows.

    ``partial`` [programs, 3, H] gets the sums for gamma, beta and, of dropout's gradient, for a
    bias before it.
    """
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < cols
    weight = tl.load(gamma + column, mask=inside, other=0.0)
    for_gamma = tl.zeros((BLOCK,), tl.float32)
    for_beta = tl.zeros((BLOCK,), tl.float32)
    for_bias = tl.zeros((BLOCK,), tl.float32)
    for step in range(share):
        row = program * share + step
        here = column < tl.where(row < rows, cols, 0)
        at = row * cols + column
        gradient = tl.load(dy + at, mask=here, other=0.0).to(tl.float32)
        if DROP == OUTER:
            gradient = tl.where(_kept(seed, row, column, threshold), gradient * scale, 0.0)
        x = tl.load(xhat + at, mask=here, other=0.0).to(tl.float32)
        for_gamma += gradient * x
        for_beta += gradient
        g = gradient * weight
        along = tl.sum(g * x, 0) / cols
        rstd = tl.load(rstd_in + row, mask=row < rows, other=0.0)
        dz = (g - tl.sum(g, 0) / cols - x * along) * rstd
        tl.store(dz_out + at, dz.to(dz_out.dtype.element_ty), mask=here)
        if DROP == INNER:
            dz = tl.where(_kept(seed, row, column, threshold), dz * scale, 0.0)
            tl.store(dx_out + at, dz.to(dx_out.dtype.element_ty), mask=here)
        if EIGHT:
            _store_eight(tl.where(here, dz, 0.0), values, scales, row, at, here, row < rows)
        for_bias += dz
    to = partial + program * 3 * cols + column
    tl.store(to, for_gamma, mask=inside)
    tl.store(to + cols, for_beta, mask=inside)
    tl.store(to + 2 * cols, for_bias, mask=inside)


@triton.jit
def _tanh_parts(x):
    """Return the logistic function of 2z, z the argument of GELU's tanh, and z's derivative."""
    z = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return tl.sigmoid(2 * z), 0.7978845608028654 * (1 + 0.134145 * x * x)


@triton.jit
def gelu_forward(
    u, out, values, scales, cols, BLOCK: tl.constexpr, TANH: tl.constexpr, EIGHT: tl.constexpr,
):  # fmt: skip
    """out [T, N] = GELU(u), element by element."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < cols
    at = row * cols + column
    x = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
    if TANH:
        share, _ = _tanh_parts(x)
    else:
        share = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
    tl.store(out + at, (x * share).to(out.dtype.element_ty), mask=inside)
    if EIGHT:
        _store_eight(x * share, values, scales, row, at, inside, row >= 0)


@_for_any_batch
def gelu_backward(
    dy, u, du, partial, values, scales, rows, cols, share,
    BLOCK: tl.constexpr, TANH: tl.constexpr, EIGHT: tl.constexpr,
):  # fmt: skip
    """du = dy GELU'(u) on a share of the rows; partial [programs, N]: its sums."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < cols
    sums = tl.zeros((BLOCK,), tl.float32)
    for step in range(share):
        row = program * share + step
        here = column < tl.where(row < rows, cols, 0)
        at = row * cols + column
        x = tl.load(u + at, mask=here, other=0.0).to(tl.float32)
        if TANH:
            part, inner = _tanh_parts(x)
            slope = part + 2 * x * part * (1 - part) * inner
        else:
            part = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
            slope = part + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
        gradient = tl.load(dy + at, mask=here, other=0.0).to(tl.float32) * slope
        sums += gradient
        tl.store(du + at, gradient.to(du.dtype.element_ty), mask=here)
        if EIGHT:
            _store_eight(gradient, values, scales, row, at, here, row < rows)
    tl.store(partial + program * cols + column, sums, mask=inside)


@_for_any_batch
def column_sums(x, partial, rows, cols, share, BLOCK: tl.constexpr):
    """partial [programs, N]: the sums of a share of the rows of BLOCK columns."""
    program = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < cols
    sums = tl.zeros((BLOCK,), tl.float32)
    for step in range(share):
        row = program * share + step
        here = column < tl.where(row < rows, cols, 0)
        sums += tl.load(x + row * cols + column, mask=here, other=0.0).to(tl.float32)
    tl.store(partial + program * cols + column, sums, mask=inside)


@_for_any_batch
def join(
    dq, dk, dv, out, partial, values, scales, rows, cols, share,
    BLOCK: tl.constexpr, EIGHT: tl.constexpr,
):  # fmt: skip
    """out [T, 3H] = dq, dk, dv [T, H] side by side; partial [programs, 3H]: its columns' sums."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    of_k, of_v = (column >= cols) & (column < 2 * cols), column >= 2 * cols
    sums = tl.zeros((BLOCK,), tl.float32)
    for step in range(share):
        row = program * share + step
        here = column < tl.where(row < rows, 3 * cols, 0)
        at = row * cols + column
        value = tl.load(dq + at, mask=here & (column < cols), other=0.0)
        value += tl.load(dk + at - cols, mask=here & of_k, other=0.0)
        value += tl.load(dv + at - 2 * cols, mask=here & of_v, other=0.0)
        at = row * 3 * cols + column
        tl.store(out + at, value, mask=here)
        z = value.to(tl.float32)
        sums += z
        if EIGHT:
            _store_eight(z, values, scales, row, at, here, row < rows)
    tl.store(partial + program * 3 * cols + column, sums, mask=column < 3 * cols)


@_for_any_batch
def sums_into(
    partial, first, second, third, known, programs, pitch, cols,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr, KNOWN: tl.constexpr,
):  # fmt: skip
    """first, second, third [N] = the sums of partial[:, 0], [:, 1], [:, 2].

    ADD: plus what was in first and second; KNOWN: third's plus ``known`` [N].
    """
    which = tl.program_id(1)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < cols
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, programs, ROWS):
        row = begin + tl.arange(0, ROWS)
        at = row[:, None].to(tl.int64) * pitch + which * cols + column[None, :]
        here = (row[:, None] < programs) & inside[None, :]
        total += tl.sum(tl.load(partial + at, mask=here, other=0.0), 0)
    to = first
    if which == 1:
        to = second
    if which == 2:
        to = third
        if KNOWN:
            total += tl.load(known + column, mask=inside, other=0.0)
    elif ADD:
        total += tl.load(to + column, mask=inside, other=0.0)
    tl.store(to + column, total, mask=inside)


@triton.jit
def cross_entropy(
    logits, labels, loss, hit, cols, BLOCK: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """A row's loss and whether its largest logit is the label's; the gradient replaces the row."""
    row = tl.program_id(0).to(tl.int64)
    x = logits + row * cols
    column = tl.arange(0, BLOCK)
    largest, total, best = float("-inf"), 0.0, 0
    for begin in range(0, cols, BLOCK):
        inside = begin + column < cols
        part = tl.load(x + begin + column, mask=inside, other=float("-inf")).to(tl.float32)
        top = tl.max(part, 0)
        if top > largest:  # the first of equals wins, as in argmax
            best = begin + tl.argmax(part, 0)
            total = total * tl.exp(largest - top)
            largest = top
        total += tl.sum(tl.exp(part - largest), 0)
    label = tl.load(labels + row)
    tl.store(loss + row, tl.log(total) + largest - tl.load(x + label).to(tl.float32))
    tl.store(hit + row, (best == label).to(tl.uint8))
    if GRADIENT:
        for begin in range(0, cols, BLOCK):
            inside = begin + column < cols
            part = tl.load(x + begin + column, mask=inside, other=float("-inf")).to(tl.float32)
            slope = tl.exp(part - largest) / total
            slope = tl.where(begin + column == label, slope - 1, slope)
            tl.store(x + begin + column, slope.to(logits.dtype.element_ty), mask=inside)
