# SPDX-License-Identifier: Apache-2.0
"""Which keys matter: the closed entries, the printed scores, the picture, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

from bertbench.common.cli.importance import _without, draw
from bertbench.common.cli.main import main
from bertbench.common.model.bert import Layer
from bertbench.common.model.config import BertConfig
from bertbench.common.model.ops import Ops

ROWS = [
    {"closed": "", "score": 0.5}, {"closed": "0", "score": 0.49}, {"closed": "3", "score": 0.3},
    {"closed": "[CLS]", "score": 0.45},
]  # fmt: skip


def task(mask: torch.Tensor) -> SimpleNamespace:
    config = BertConfig(
        vocab_size=19, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=8,
    )  # fmt: skip
    layer = Layer(config, Ops())
    layer.attention_mask = mask
    recipe = SimpleNamespace(max_seq_length=6)
    return SimpleNamespace(model=torch.nn.ModuleList([layer]), recipe=recipe)


def test_each_distance_is_closed_once_and_no_query_is_left_without_a_key() -> None:
    full = torch.ones(1, 6, 6, dtype=torch.bool)
    found = dict(_without(task(full), [0, 2, 9]))  # type: ignore[arg-type]
    assert list(found) == ["", "0", "2", "[CLS]"]
    assert found[""][0] is full
    at = torch.arange(6)
    distance = (at[:, None] - at).abs()
    for label in ("0", "2"):
        assert torch.equal(found[label][0][0], distance != int(label))
    cls = found["[CLS]"][0][0]
    assert cls[1:, 1:].all()
    assert not cls[1:, 0].any()
    assert cls[0, 1:].all()
    band = (distance <= 1)[None]
    narrow = dict(_without(task(band & (distance != 1)), [0]))  # type: ignore[arg-type]
    assert torch.equal(narrow["0"][0], torch.eye(6, dtype=torch.bool)[None]), "all that is left"


def test_a_query_keeps_a_key_in_every_sequence_and_layers_share_what_they_shared() -> None:
    mask = torch.eye(6, dtype=torch.bool)[None].clone()
    mask[:, :, 4] = True  # a global token, which sequences of up to four tokens lack
    one = task(mask)
    one.model.append(task(mask).model[0])
    (first, second) = dict(_without(one, [0]))["0"]  # type: ignore[arg-type]
    assert first is second
    for length in range(2, 7):
        assert first[0, :length, :length].any(1).all()
    assert not first[0].diagonal()[5]


def test_scores_are_drawn_over_distance() -> None:
    picture = draw(ROWS, "mlm_accuracy")
    tree = ElementTree.fromstring(picture)
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    text = " ".join(tree.itertext())
    assert "nothing closed" in text
    assert "[CLS] closed" in text
    assert len(re.findall(r'class="m ', picture)) == 2


def test_a_run_s_weights_are_scored(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny: list[str]
) -> None:
    flags = [*tiny, "--data", str(prepared)]
    run = ["run", "mini", *flags, "--output_dir", str(tmp_path), "--json"]
    assert main([*run, "--num_samples_per_checkpoint", "96"]) == 0
    record = Path(json.loads(capsys.readouterr().out)["record"])
    (weights,) = record.glob("checkpoints/*/model.safetensors")
    picture = tmp_path / "importance.svg"
    own = ["importance", "--json", "--distances", "0-1,3", "--plot", str(picture), "--"]
    assert main([*own, "run", "mini", *flags, "--init_checkpoint", str(weights)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["closed"] for row in found["rows"]] == ["", "0", "1", "3", "[CLS]"]
    recorded = json.loads((record / "manifest.json").read_text())["metrics"]
    accuracy = next(m["value"] for m in recorded if m["name"] == "mlm_accuracy")
    assert found["metric"] == "mlm_accuracy"
    assert found["rows"][0]["score"] == pytest.approx(accuracy)
    assert len({row["loss"] for row in found["rows"]}) == 5, "each mask has taken effect"
    assert picture.read_text().startswith("<svg xmlns")
    assert found["near_zero"] == (found["rows"][0]["score"] < 0.02)
    text = ["importance", "--distances", "0", "--", "run", "mini", *flags]
    assert main([*text, "--init_checkpoint", str(weights)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("closed: no query attends")
    assert ("near zero: the differences say nothing" in shown) == found["near_zero"]
    far = ["importance", "--distances", "3,32", "--", "run", "mini", *flags]
    assert main([*far, "--init_checkpoint", str(weights)]) == 2
    assert "distances are from 0 to 31" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("own", "run", "message"),
    [
        (["--distances", "1,x"], [], "give numbers and ranges"),
        (["--distances", "0,8-5"], [], "give numbers and ranges"),
        (["--plot", "{folder}"], [], "is a folder: name a file"),
        (["--plot", "a.png"], [], "ends in .svg"),
        (["--plot", "/dev/null/a.svg"], [], "the folder of --plot, /dev/null: /dev/null is not a"),
        ([], [], "give --init_checkpoint: random weights"),
        ([], ["--no_such_flag"], "no_such_flag"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    own: list[str], run: list[str], message: str, prepared: Path, tiny: list[str],
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "folder.svg"
    folder.mkdir()
    own = [word.format(folder=folder) for word in own]
    words = ["importance", *own, "--", "run", "mini", *tiny, "--data", str(prepared), *run]
    assert main(words) == 2
    assert message in capsys.readouterr().err
