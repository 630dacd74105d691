# SPDX-License-Identifier: Apache-2.0
"""Calls of every native entry with random arguments, under AddressSanitizer and UBSan.

``python tests/hostile/sanitized.py --seed 1 --n 5000`` builds the C files with the sanitizers, lets
wrong calls past the checks to see that they are caught, then tries ``n`` calls: valid ones of
boundary sizes, and ones with an argument that is wrong. A call may raise an error; a report of a
sanitizer ends the process, and the last line printed is the call's reproduction.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = (*SANITIZERS, "-O0", "-g1", "-march=native", "-fopenmp", "-fPIC")
SIZES = (0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 130)
NUMBERS = (-1, 0, 1, 65535, 65536, 1 << 31, -(1 << 31), (1 << 63) - 1, 1e300, float("nan"), None)
REFUSED = (ValueError, TypeError, OverflowError, ctypes.ArgumentError, MemoryError)


def missing() -> str | None:
    """Return why the sanitizers cannot be used here, or None."""
    if shutil.which("gcc") is None:
        return "no gcc"
    with tempfile.TemporaryDirectory() as work:
        source = Path(work, "try.c")
        source.write_text("int main(void) { return 0; }\n")
        done = subprocess.run(
            ["gcc", *SANITIZERS, str(source), "-o", f"{work}/try"], capture_output=True, text=True
        )
    return f"gcc has no sanitizers: {done.stderr.strip()[-200:]}" if done.returncode else None


def environment(cache: Path) -> dict[str, str]:
    """Return the variables of a process that loads what ``FLAGS`` made."""
    names = ("libasan.so", "libubsan.so")
    runtimes = [
        subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()
        for name in names
    ]
    return os.environ | {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # so that every object of Python has guarded ends, too
        "BERTBENCH_CACHE": str(cache),
        "OMP_NUM_THREADS": "2",
        "CC": "gcc",
        "BERTBENCH_SANITIZED": "1",
    }


# -- arguments ----------------------------------------------------------------------------------
class Draw(random.Random):
    """Sizes, tensors and faults; equal seeds give equal ones."""

    def tensor(self, shape: list[int], dtype: Any, below: int | None = None) -> Any:
        """A tensor with values of every kind, or indices below a bound."""
        import torch

        if not dtype.is_floating_point:
            high = max(1, 256 if below is None else below)
            return torch.tensor(
                [self.randrange(high) for _ in range(torch.Size(shape).numel())], dtype=dtype
            ).reshape(shape)
        values = torch.randn(shape, generator=torch.Generator().manual_seed(self.getrandbits(32)))
        if self.random() < 0.2 and values.numel():
            odd = (float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 1e-40, 0.0)
            values.view(-1)[self.randrange(values.numel())] = self.choice(odd)
        return values.to(dtype).contiguous()

    def spoil(self, value: Any) -> Any:
        """Return an argument that is wrong in one way, or looks so."""
        import torch

        if not isinstance(value, torch.Tensor):
            return self.choice(NUMBERS)
        index = not value.is_floating_point() and value.numel()
        kind = self.choice(
            ["none", "type", "longer", "shorter", "strided", "shifted", "range" * bool(index)]
        )
        if kind == "type":
            return value.to(
                self.choice([torch.float64, torch.int16, torch.float32, torch.bfloat16])
            )
        if kind in ("longer", "shorter") and value.ndim:
            dim, step = self.randrange(value.ndim), 1 if kind == "longer" else -1
            shape = [max(0, n + step * (d == dim)) for d, n in enumerate(value.shape)]
            return torch.zeros(shape, dtype=value.dtype)
        if kind == "strided" and value.ndim:
            return value.repeat_interleave(2, -1)[..., ::2]
        if kind == "shifted":
            room = torch.zeros(value.numel() + 1, dtype=value.dtype)
            room[1:] = value.reshape(-1)
            return room[1:].view(value.shape)
        if kind == "range":
            value = value.clone()
            low, top = torch.iinfo(value.dtype).min, torch.iinfo(value.dtype).max
            odd = (-1, int(value.max()) + 1, 10**6, top, low)
            value.view(-1)[self.randrange(value.numel())] = self.choice(
                [n for n in odd if low <= n <= top]
            )
            return value
        return None


def kernel(draw: Draw, name: str) -> list[Any]:
    """Return valid arguments of a kernel, from its signature."""
    import torch

    from bertbench.backends.cpu_ref import library

    sizes: dict[str, int] = {}
    half = draw.choice([torch.bfloat16, torch.float32])
    numbers = {"eps": 1e-5, "threshold": draw.choice([0, 1, 6554, 65535]), "scale": 1.1}
    parameters = library._PARAMETERS[name]
    bounds = {p.below for p in parameters}  # a table without rows has no index
    absent = {p.name for p in parameters if p.optional == "" and draw.random() < 0.3}
    args: list[Any] = []
    for p in parameters:
        if not p.shape:
            if p.kind:
                args.append(numbers.get(p.name, draw.randrange(2)))
            continue
        shape = [
            int(s) if s.isdigit() else sizes.setdefault(s, draw.choice(SIZES[s in bounds :]))
            for s in p.shape
        ]
        below = sizes.setdefault(p.below, draw.choice(SIZES[1:])) if p.below else None
        dtype = half if p.kind == "x" else library._DTYPES[p.kind]
        gone = p.name in absent or p.optional in absent
        args.append(None if gone else draw.tensor(shape, dtype, below))
    return args


def attention(draw: Draw) -> list[Any]:
    """Return valid arguments of attention, of either pass, over all keys or kept blocks."""
    import numpy as np
    import torch

    from bertbench.backends.cpu_ref.layout import DENSE, Layout, saved_cells
    from bertbench.backends.cpu_ref.residues import Residues

    half = draw.choice([torch.bfloat16, torch.float32])
    heads, lengths = draw.choice([1, 2, 3]), [draw.choice(SIZES) for _ in range(draw.randrange(4))]
    layout, block = DENSE, draw.choice([16, 32, 48])
    kind = draw.choice(["dense", "blocks", "residues"])
    if kind != "dense":
        longest = max([1, *lengths]) + draw.choice([0, 1, 40])
        share = draw.choice([0.0, 0.003, 0.1, 1.0])
        masks = np.random.default_rng(draw.getrandbits(32)).random((heads, longest, longest))
        layout = Layout.of(masks < share, heads=heads, block=block)
        if kind == "residues":
            strides = [draw.choice([1, 2, 7, 64]) for _ in range(heads)]
            made = Residues(masks < share, np.arange(heads), strides, block)
            layout = made.layout(tuple(lengths))
    layout = layout.over(len(lengths))
    cells = saved_cells(np.array(lengths, np.int64), heads, layout)
    offsets = torch.from_numpy(cells.cumsum() - cells.ravel()).view(cells.shape)
    return attention_arguments(
        draw, half, lengths, heads, [offsets], list(layout), [int(cells.sum())]
    )


def offset_attention(draw: Draw) -> list[Any]:
    """Return valid arguments of attention by distances, of either pass."""
    import torch

    from bertbench.backends.cpu_ref.library import NOWHERE

    half = draw.choice([torch.bfloat16, torch.float32])
    heads, lengths = draw.choice([1, 2, 3]), [draw.choice(SIZES) for _ in range(draw.randrange(4))]
    sets, slots = draw.choice([1, 2]), draw.choice([16, 32])
    far = draw.choice([1, 20, 200, NOWHERE])
    steps = [sorted(draw.randint(-far, far) for _ in range(slots)) for _ in range(sets)]
    which = draw.tensor([heads], torch.int64, sets)
    kept = [which, torch.tensor(steps, dtype=torch.int32)]
    return attention_arguments(draw, half, lengths, heads, [], kept, [heads, sum(lengths), slots])


def attention_arguments(
    draw: Draw, half: Any, lengths: list[int], heads: int, offsets: list[Any], kept: list[Any],
    room: list[int],
) -> list[Any]:  # fmt: skip
    """Return the arguments of either kernel of attention; ``room`` is the shape of ``saved``."""
    import torch

    size, rows = draw.choice([16, 32, 48, 64, 80]), sum(lengths)
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    order = torch.tensor(sorted(range(len(lengths)), key=lambda b: -lengths[b]), dtype=torch.int64)
    backward = draw.random() < 0.5
    saved = backward or draw.random() < 0.5
    width = heads * size
    return [
        draw.tensor([rows, 3 * width], half), starts, order, *offsets, heads, size, *kept,
        draw.tensor([rows, width], half), draw.tensor(room, half) if saved else None,
        draw.tensor([rows, heads], torch.float32),
        draw.tensor([rows, width], half) if backward else None,
        draw.tensor([rows, 3 * width], half) if backward else None,
        draw.choice([0, 6554]), 1.1, 7,
    ]  # fmt: skip


def try_kernel(draw: Draw, name: str, wrong: bool) -> None:
    """Call one kernel of cpu_ref."""
    from bertbench.backends.cpu_ref.library import call

    made = {"attention": attention, "offset_attention": offset_attention}
    args = made[name](draw) if name in made else kernel(draw, name)
    if wrong:
        at = draw.randrange(len(args))
        args[at] = draw.spoil(args[at])
    call(name, *args)


def try_lamb(draw: Draw, wrong: bool) -> None:
    """Take one step of LAMB over some parameters."""
    import torch

    from bertbench.backends.cpu_ref.lamb import native_lamb
    from bertbench.common.optim.lamb import LambStep

    segments = [draw.choice([1, 1, 3]) for _ in range(draw.randrange(4))]
    shapes = [[n * draw.choice(SIZES), draw.choice(SIZES)] for n in segments]
    if draw.random() < 0.2:
        shapes.append([(1 << 14) + draw.choice([-1, 0, 1])])
        segments.append(1)
    lists = [[draw.tensor(shape, torch.float32) for shape in shapes] for _ in range(4)]
    numbers = [0.01, 0.9, 0.999, 1e-6, draw.choice([0.0, 0.01]), draw.choice([1, 2, 10**18])]
    if wrong and draw.random() < 0.3:
        numbers[5] = draw.choice([0, -1])
    elif wrong and shapes:
        one = draw.choice([*lists, segments])
        at = draw.randrange(len(shapes))
        one[at] = draw.choice([0, -1, 2, 5]) if one is segments else draw.spoil(one[at])
        if one[at] is None:
            del one[at]
    native_lamb(LambStep(*lists, segments, *numbers))


def try_masking(draw: Draw, wrong: bool) -> None:
    """Create the samples of a text."""
    import numpy as np

    from bertbench.common.data.tokenization import SpecialIds
    from bertbench.common.prepare import masking

    lengths = [draw.choice([1, 2, 5, 40]) for _ in range(draw.randint(1, 12))]
    cuts = sorted(draw.sample(range(1, len(lengths)), draw.randrange(len(lengths))))
    vocab = draw.choice([1, 5, 1000, 1 << 16, 100_000])
    parts = {
        "ids": np.array([draw.randrange(vocab) for _ in range(sum(lengths))], np.int32),
        "sentences": np.cumsum([0, *lengths], dtype=np.int64),
        "documents": np.array([0, *cuts, len(lengths)], np.int64),
    }
    if wrong:
        one = parts[draw.choice(list(parts))]
        one[draw.randrange(len(one))] = draw.choice([-1, 0, 10**6, one.max() + 1, 1 << 30])
    if wrong and draw.random() < 0.2:
        vocab = draw.choice([0, -1, 3, 1 << 31])
    special = SpecialIds(cls=2, sep=3, mask=4, vocab_size=vocab)
    options = masking.MaskingOptions(
        max_seq_length=draw.choice([5, 6, 16, 64, 1 << 15]),
        max_predictions_per_seq=draw.choice([1, 5, 1 << 15]),
        masked_lm_prob=draw.choice([0.0, 0.15, 1.0]),
        short_seq_prob=draw.choice([0.0, 0.5, 1.0]),
        dupe_factor=draw.choice([1, 3]),
        random_seed=draw.choice([0, 12345, (1 << 64) - 1]),
    )
    _, implementation = masking.create_samples(masking.TokenizedText(**parts), special, options)
    assert implementation == "c", implementation


def try_wordpiece(draw: Draw, wrong: bool) -> None:
    """Tokenise some lines."""
    from bertbench.common.data.tokenization import SPECIAL, BertTokenizer

    letters = [
        *"abAZ09",
        " ",
        "\t",
        "\r",
        ".",
        "\x00",
        "\x7f",
        "\u00e9",
        "\u4e2d",
        "\u0130",
        "\u1e9e",
    ]
    pieces = {"".join(draw.choices(letters[:6], k=draw.choice([1, 2, 101]))) for _ in range(9)}
    tokenizer = BertTokenizer([*SPECIAL, *pieces, "##a"], lowercase=draw.random() < 0.5)
    assert tokenizer.implementation == "c", tokenizer.implementation
    odd = ["\n", "\ud800"] if wrong else []
    for _ in range(3):
        lines = [
            "".join(draw.choices([*letters, *odd], k=draw.choice([0, 1, 5, 99, 100, 101, 300])))
            for _ in range(draw.randrange(5))
        ]
        tokenizer.encode_lines(lines)


# -- proof that a wrong call is caught ----------------------------------------------------------
def _canaries() -> dict[str, Callable[[], object]]:
    import numpy as np
    import torch

    from bertbench.backends.cpu_ref.library import library
    from bertbench.common.data.tokenization import SPECIAL, BertTokenizer, SpecialIds
    from bertbench.common.prepare import masking

    def read() -> None:
        x, sums = torch.zeros(2, 16), torch.zeros(32, 16)
        library()["column_sums"](x.data_ptr(), sums.data_ptr(), 3, 16, 0)

    def write() -> None:
        grad, ids = torch.zeros(1, 16), torch.tensor([1])
        library()["scatter_add"](
            torch.zeros(1, 16).data_ptr(), ids.data_ptr(), grad.data_ptr(), 1, 16, 0
        )

    def misaligned() -> None:
        ids = torch.zeros(3, dtype=torch.int64)
        library()["first_outside"](ids.data_ptr() + 1, 1, 1)

    def text() -> None:
        masking._check_text = lambda *_: None
        offsets = np.array([0, 4], np.int64)
        one = masking.TokenizedText(
            ids=np.zeros(1, np.int32), sentences=offsets, documents=np.array([0, 1], np.int64)
        )
        special = SpecialIds(cls=2, sep=3, mask=4, vocab_size=9)
        masking.create_samples(one, special, masking.MaskingOptions())

    def lines() -> None:
        words = BertTokenizer([*SPECIAL, "a"])._words
        assert words is not None
        counts, spans = np.empty(1, np.int64), np.empty(9, np.int64)
        ids, number = np.empty(99, np.int32), ctypes.c_int64(0)
        at = [ctypes.c_void_p(array.ctypes.data) for array in (ids, counts, spans)]
        words._library.wordpiece_encode(
            words._handle, b"a\n\n\n", ctypes.c_int64(4), at[0], ctypes.c_int64(99), *at[1:],
            ctypes.byref(number),
        )  # fmt: skip

    return {"read": read, "write": write, "misaligned": misaligned, "text": text, "lines": lines}


def prove() -> list[str]:
    """Return the wrong calls that no sanitizer caught; each is made in a process of its own."""
    missed = []
    for name, wrong in _canaries().items():
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            wrong()
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            missed.append(name)
    return missed


def tried(seed: int, first: int, n: int) -> Counter[str]:
    """Make calls ``first`` to ``first + n`` and return how many of each kind ended how."""
    from bertbench.backends.cpu_ref import library
    from bertbench.common.errors import BertbenchError

    entries: dict[str, Callable[[Draw, bool], None]] = {
        **{n: (lambda d, w, n=n: try_kernel(d, n, w)) for n in library._SIGNATURES},
        "lamb": try_lamb, "masking": try_masking, "wordpiece": try_wordpiece,
    }  # fmt: skip
    names = list(entries)
    count: Counter[str] = Counter()
    for i in range(first, first + n):
        name, wrong = names[i % len(names)], i // len(names) % 2 == 1
        print(f"{sys.executable} {__file__} --seed {seed} --first {i} --n 1  # {name}", flush=True)
        try:
            entries[name](Draw(f"{seed} {i}"), wrong)
            count[f"{name} {'wrong' if wrong else 'valid'} done"] += 1
        except (BertbenchError, *REFUSED) as error:
            if not wrong:
                raise AssertionError(f"a valid call was refused: {error}") from error
            count[f"{name} wrong refused"] += 1
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--n", type=int, default=1000)
    options = parser.parse_args()
    if "BERTBENCH_SANITIZED" not in os.environ:
        why = missing()
        if why is not None:
            print(why)
            return 2
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, *sys.argv]
            return subprocess.run(command, env=environment(Path(cache))).returncode
    from bertbench.backends.cpu_ref.library import library
    from bertbench.common import native

    native.FLAGS = FLAGS
    library()
    missed = prove()
    if missed:
        print(f"not caught: {', '.join(missed)}")
        return 1
    for kind, number in sorted(tried(options.seed, options.first, options.n).items()):
        print(f"{kind:32} {number}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
