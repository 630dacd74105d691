# SPDX-License-Identifier: Apache-2.0
"""The commands of benchmarks/sparse_bert/README.md, in their order, at a small size."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from sparse_text import make_text

from bertbench.common.cli.main import main

PAGE = Path(__file__).parents[3] / "benchmarks" / "sparse_bert" / "README.md"


def commands() -> list[list[str]]:
    """The words of each command of the page, without the program."""
    text = "".join(re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL))
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    words = [shlex.split(line) for line in lines]
    assert all(program == ".venv/bin/bertbench" for program, *_ in words)
    return [rest for _, *rest in words]


def small(words: list[str], tiny: list[str]) -> list[str]:
    """Expand patterns as a shell does, and add the flags that make a command take seconds."""
    found = [path for word in words for path in (_matches(word) or [word])]
    if "run" in found and "glue_mini" not in found:
        return [*found, *tiny]
    return found + {
        "data": "--max_seq_length 32 --max_predictions_per_seq 5 --train_vocab 90"
        " --eval_fraction 0.3 --dupe_factor 2 --processes 1",
        "run": "--max_seq_length 32 --max_steps 2 --global_batch 4 --backend cpu_ref"
        " --num_threads 1 --precision fp32 --skip_checkpoint",
        "masks": "--length 32",
    }.get(found[0], "").split()  # fmt: skip


def _matches(word: str) -> list[str]:
    return sorted(map(str, Path().glob(word))) if "*" in word else []


def test_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    make_text(tmp_path / "wiki.txt")
    folder = tmp_path / "glue_data" / "SST-2"
    folder.mkdir(parents=True)
    for name in ("train", "dev"):
        rows = [f"the cat sees the {word}\t{i % 2}" for i, word in enumerate(["dog", "bird"] * 4)]
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    every = ["--num_samples_per_checkpoint", "96"]
    for words in commands():
        run = "run" in words and "glue_mini" not in words
        code = main(small(words, [*tiny, *every] if run else []))
        out = capsys.readouterr()
        allowed = (0, 1) if words[0] == "compare" else (0,)  # 1: a metric is worse
        assert code in allowed, f"{words}\n{out.out}\n{out.err}"
    words = ["run", "mini", *tiny, "--data", "way/data", "--json", "--max_steps", "1"]
    for more in ([], ["--attention_mask", "way/weights/attention_mask.json"]):
        assert main([*words, "--init_checkpoint", "way/weights/model.safetensors", *more]) == 0
        record = Path(json.loads(capsys.readouterr().out)["record"])
        notes = json.loads((record / "manifest.json").read_text())["notes"]
        found = [note for note in notes if note.startswith("the weights were trained under a mask")]
        assert len(found) == (0 if more else 1)
        assert more or "--attention_mask way/weights/attention_mask.json" in found[0]
    for made in ("way/report/report.html", "way/importance.svg"):
        assert (tmp_path / made).stat().st_size > 1000
