# SPDX-License-Identifier: Apache-2.0
"""Change a file's bytes, its JSON, its words or its kind, as a stranger or a bad disk would."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import random
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP = 100_000
RAW = {
    "infinite number": "1e999", "NaN": "NaN", "-Infinity": "-Infinity",
    "5,000 digits": "9" * 5000, "a negative of 400 digits": "-1" + "0" * 400,
    "deep lists": "[" * DEEP + "]" * DEEP, "deep objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "unclosed lists": "[" * DEEP,
}  # fmt: skip
"""Values that JSON's writers do not write."""


def hostile_values(canary: Path) -> list[Any]:
    shell = f"$(touch {canary})"
    return [
        None, True, False, 0, -1, 1, 1.5, 1e308, -0.0, 2**31, 2**63, 2**64, 10**18, "", "x", "0",
        "NaN", [], {}, [[]], [None], {"a": {}}, {"": 0}, ["x"] * 3, "\u202eevil\u2066", "\ud800",
        "\x1b[2J\x1b]0;title\x07", "../../../../etc/passwd", "/dev/zero", "/", "..", ".", "a\x00b",
        "ok\nVALID: record", "\r\x1b[1A", "<script>alert(1)</script>", "x" * 1_000_000, shell,
        f"'; touch {canary}; '", f"__import__('os').system('touch {canary}')", "{{7*7}}", "%s%n",
        f"!!python/object/apply:os.system ['touch {canary}']", "\u0000", "\ufeff", "(a+)+$",
        f"{canary.parent}/evil", f"../../../../../../../../../..{canary.parent}/evil",
        "1970-01-01T00:00:00Z", "99999-99-99", "ok", "interrupted", "closed", "open", "9" * 5000,
    ]  # fmt: skip


def evil_yaml(canary: Path) -> None:
    """Write a configuration for MLPerf's checker, beside ``canary``, whose code leaves that."""
    touch = f"__import__('pathlib').Path('{canary}').touch()"
    (canary.parent / "evil_common.yaml").write_text(f'- BEGIN:\n    CODE: "{touch}"\n')


# -- bytes -------------------------------------------------------------------------------------


def change_bytes(rng: random.Random, data: bytes, other: bytes) -> tuple[str, bytes]:
    """Return the words of a change and the changed bytes; ``other`` is spliced in."""
    n = max(1, len(data))
    a, size = rng.randrange(n), rng.choice((1, 8, 64, 512, 4096))
    changes: dict[str, Callable[[], bytes]] = {
        "flips": lambda: _flipped(rng, data),
        "cut": lambda: data[:a],
        "beginning lost": lambda: data[a:],
        "zero block": lambda: data[:a] + bytes(min(size, n - a)) + data[a + size :],
        "block twice": lambda: data[: a + size] + data[a:],
        "block lost": lambda: data[:a] + data[a + size :],
        "splice": lambda: data[:a] + other[a:],
        "noise": lambda: data[:a] + rng.randbytes(size) + data[a + size :],
        "noise added": lambda: data + rng.randbytes(size),
        "empty": lambda: b"",
        "twice": lambda: data + data,
        "of another kind": lambda: other,
        "NULs": lambda: bytes(n),
        "UTF-16": lambda: data.decode("utf-8", "replace").encode("utf-16"),
    }
    word = rng.choices(list(changes), [6, 4] + [1] * (len(changes) - 2))[0]
    return word, changes[word]()


def _flipped(rng: random.Random, data: bytes) -> bytes:
    found = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


# -- JSON --------------------------------------------------------------------------------------


def change_json(rng: random.Random, value: Any, canary: Path) -> tuple[str, str]:
    """Return the words of a change and the text of the changed document."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    if not places:
        return "a bare value", json.dumps(rng.choice(hostile_values(canary)))
    parent, key = rng.choice(places)
    where, chance = f"at {str(key)[:40]!r}", rng.random()
    if chance < 0.2:
        name = rng.choice(list(RAW))
        parent[key] = "@RAW@"
        return f"{name} {where}", json.dumps(value).replace('"@RAW@"', RAW[name])
    if chance < 0.3:
        del parent[key]
        return f"nothing {where}", json.dumps(value)
    if chance < 0.4 and isinstance(parent, dict):
        new = str(rng.choice(hostile_values(canary)))[:2000]
        parent[new] = parent.pop(key)
        return f"{new[:40]!r} for the key {where}", json.dumps(value)
    if chance < 0.5 and isinstance(parent[key], str):
        parent[key] += rng.choice(("\x00", "\x1b[31m", "\u202e", "/../..", "\n", " "))
        return f"text added {where}", json.dumps(value)
    if chance < 0.6 and isinstance(parent[key], int | float):
        old = parent[key]
        parent[key] = rng.choice((-old, old * 1e6, old + 1, str(old), old / 3))
        return f"{parent[key]!r} {where}", json.dumps(value)
    new = rng.choice(hostile_values(canary))
    parent[key] = new
    return f"{str(new)[:40]!r} ({type(new).__name__}) {where}", json.dumps(value)


def _places(value: Any) -> Any:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = list(enumerate(value))[:40]
    for key, child in items:
        yield value, key
        yield from _places(child)


def forge(value: Any) -> tuple[str, str]:
    """Make a record's figures a hundred times better, and take its checksums away."""
    for metric in value["metrics"]:
        metric["value"] *= 100
    return "figures x 100 without checksums", json.dumps(value | {"files": None}, indent=1) + "\n"


def change_lines(rng: random.Random, text: str, canary: Path) -> tuple[str, str]:
    """Change the JSON in one line; text before it (as in MLPerf's log) stays."""
    lines = text.splitlines()
    found = [i for i, line in enumerate(lines) if "{" in line]
    if not found:
        return "no JSON lines", text + "{"
    named = [i for i in found if '"submission_' in lines[i]]
    if named and rng.random() < 0.25:  # by which MLPerf's checker chooses the code that it runs
        i = rng.choice(named)
        where = rng.choice((f"..{canary.parent}", f"{'../' * 20}{canary.parent}", canary.parent))
        start = lines[i].index("{")
        event = json.loads(lines[i][start:]) | {"value": f"{where}/evil".replace("//", "/")}
        lines[i] = lines[i][:start] + json.dumps(event)
        return f"{event['key']} names a file with code", "\n".join(lines) + "\n"
    i = rng.choice(found)
    start = lines[i].index("{")
    words, changed = change_json(rng, json.loads(lines[i][start:]), canary)
    lines[i] = lines[i][:start] + changed
    return f"line {i + 1}: {words}", "\n".join(lines) + "\n"


def change_tensors(rng: random.Random, data: bytes, canary: Path) -> tuple[str, bytes]:
    """Change the JSON header of a safetensors file."""
    size = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.15:
        size = rng.choice((0, 1, 2**62, 2**64 - 1, len(data)))
        return f"header of {size} bytes", struct.pack("<Q", size) + data[8:]
    words, header = change_json(rng, json.loads(data[8 : 8 + size]), canary)
    encoded = header.encode("utf-8", "surrogatepass")
    return f"header: {words}", struct.pack("<Q", len(encoded)) + encoded + data[8 + size :]


def change_words(rng: random.Random, text: str, canary: Path) -> tuple[str, str]:
    """Replace a word or number of a text by a hostile one, or change its lines."""
    words = list(re.finditer(r"[\w.+-]+", text))
    chance = rng.random()
    if not words or chance < 0.2:
        added = rng.choice(("\ufeff", "\x00" * 100, "x" * 2_000_000, "\n" * 100_000, "\x1b[2J\n",
                            "<doc id=", "\u202e", "[MASK] [SEP]\n", "\r", "{" * DEEP))  # fmt: skip
        at = rng.choice((0, len(text), rng.randrange(len(text) + 1)))
        return f"{added[:20]!r} at character {at}", text[:at] + added + text[at:]
    if chance < 0.35:
        lines = text.splitlines()
        what = rng.choice(("shuffled", "doubled", "joined", "reversed"))
        if what == "shuffled":
            rng.shuffle(lines)
        lines = lines * 2 if what == "doubled" else lines[::-1] if what == "reversed" else lines
        return f"lines {what}", (" " if what == "joined" else "\n").join(lines)
    word = rng.choice(words)
    new = rng.choice([*RAW.values(), *(str(v) for v in hostile_values(canary))])
    return f"{new[:30]!r} for {word[0][:30]!r}", text[: word.start()] + new + text[word.end() :]


# -- the file itself ---------------------------------------------------------------------------


def change_kind(rng: random.Random, path: Path) -> str:
    """Put something else in a file's place."""
    kinds: dict[str, Callable[[], Any]] = {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link to /dev/zero": lambda: path.symlink_to("/dev/zero"),
        "link to /dev/full": lambda: path.symlink_to("/dev/full"),
        "link to itself": lambda: path.symlink_to(path.name),
        "link to nothing": lambda: path.symlink_to("nowhere"),
        "link to a secret": lambda: path.symlink_to("/etc/passwd"),
        "20 GB of holes": lambda: (path.touch(), os.truncate(path, 20 << 30)),
        "gone": lambda: None,
    }
    word = rng.choice(list(kinds))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    kinds[word]()
    return word


def change_folder(rng: random.Random, file: Path) -> tuple[str, bool]:
    """Put a stranger beside ``file``, or rename its folder; say whether the content is the same."""
    names = ["x", ".x", "x\n0 errors: valid", "\x1b[2Jx", "\u202ex.json", "-rf", "a b", "x" * 250,
             "telemetry.jsonl", f"{file.stem} (1){file.suffix}", f"{file.name}.1",
             os.fsdecode(b"\xff\xfe.json"), "<script>x<", "CON", "...", "*"]  # fmt: skip
    name = rng.choice(names)
    if rng.random() < 0.3:
        file.parent.rename(file.parent.with_name(name))
        return f"folder named {name!r}", True
    stray = file.with_name(name)
    if stray.exists():
        return "the same", True
    stray.write_bytes(file.read_bytes())
    word = change_kind(rng, stray) if rng.random() < 0.7 else "a copy"
    return f"{name!r}: {word}", not os.path.lexists(stray)


def bomb(rng: random.Random, path: Path) -> str:
    """Write a compressed file of one long line: 3 GB."""
    block = b"a" * (1 << 20)
    opener = gzip.open if path.suffix == ".gz" else bz2.open
    packed = gzip.compress(block * 64) if opener is gzip.open else bz2.compress(block * 64)
    path.write_bytes(packed * 48)
    return "bomb of 3 GB in one line"
