# SPDX-License-Identifier: Apache-2.0
"""``bertbench export-weights``: write a run's weights in the format of other software.

Hugging Face: a folder for ``from_pretrained``. NVIDIA's scripts and their forks: the
``pytorch_model.bin`` and ``bert_config.json`` that ``run_squad.py`` writes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bertbench.common.compress.layers import weights_of
from bertbench.common.data.tokenization import PAD, is_padded, read_vocab
from bertbench.common.errors import BadInput
from bertbench.common.files import read_json, shown, sync
from bertbench.common.masks.attach import WITH_WEIGHTS, from_tensors
from bertbench.common.model.config import BertConfig
from bertbench.common.model.naming import DECODER_BIAS, DECODER_WEIGHT, WORD_EMBEDDING, Naming
from bertbench.common.model.weights import other_names
from bertbench.common.results.seals import CHECKPOINTS, MANIFEST, VOCABULARY
from bertbench.common.training.checkpoint import load, resolve
from bertbench.common.training.resume import run_config

CLASSIFIER = "classifier.weight"
HEADS = {
    "qa_outputs.weight": "BertForQuestionAnswering",
    CLASSIFIER: "BertForSequenceClassification",
    DECODER_BIAS: "BertForPreTraining",
}
"""Name of a head's weight -> Hugging Face's class with that head."""


def export(
    run: Path, output: Path, *, naming: Naming = "huggingface", vocab_file: Path | None = None
) -> dict[str, Any]:
    """Write the newest checkpoint of ``run`` to the new folder ``output``; return a summary.

    Of a run that reached its target this is the checkpoint of that step. ``vocab_file`` defaults to
    the run's own, if any. The checkpoint is verified first, and ``output`` appears only when
    it is complete. Raises BadInput for a damaged checkpoint, one without its run's ``config.json``,
    or another model's vocabulary; Unsupported for a model without names in this naming.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"{shown(output)} exists: name a new folder with --output")
    checkpoint = checkpoint_of(run)
    folder = checkpoint.parent.parent
    recipe, config = recipe_of(folder / "config.json")
    groups, _ = load(checkpoint)
    saved_mask = groups.get("attention_mask")
    mask = from_tensors(saved_mask) if saved_mask else None
    vocab_file = vocab_file or _own_vocabulary(folder, config.vocab_size)
    tokens = None if vocab_file is None else _tokens(vocab_file, config.vocab_size)
    rows = config.vocab_size if tokens is None else len(tokens)
    state = other_names(weights_of(groups["model"]), config.norm_position, naming, vocab_size=rows)
    architecture = next((a for name, a in HEADS.items() if name in state), None)
    if architecture is None:
        raise BadInput(f"{checkpoint}: its model has neither of the heads {', '.join(HEADS)}")
    described = config.as_huggingface() | {
        "vocab_size": rows,
        "bertbench": {"run": folder.name, "step": int(checkpoint.stem[5:])},
    }
    if tokens is not None and PAD in tokens:
        described["pad_token_id"] = tokens.index(PAD)
    if CLASSIFIER in state:
        described |= _classes(folder / MANIFEST, len(state[CLASSIFIER]))
    if config.norm_position == "pre":
        architecture = f"Megatron{architecture}"
    with new_folder(output) as work:
        if mask is not None:
            described["bertbench"]["attention_mask"] = WITH_WEIGHTS
            mask.save(work / WITH_WEIGHTS)
        if naming == "nvidia":
            torch.save({"model": _copied(state)}, work / "pytorch_model.bin")
            write_json(work / "bert_config.json", described | {"hidden_act": "gelu"})
        else:
            # Hugging Face ties the decoder again by itself, and safetensors keeps no aliases.
            once = {name: t for name, t in _copied(state).items() if name != DECODER_WEIGHT}
            save_file(once, work / "model.safetensors", metadata={"format": "pt"})
            write_json(work / "config.json", described | {"architectures": [architecture]})
        if tokens is not None:
            _write_vocabulary(work, tokens, recipe, naming)
    return {
        "folder": str(output),
        "naming": naming,
        "architecture": architecture,
        "step": described["bertbench"]["step"],
        "run_step": _last_step(folder / MANIFEST),
        "parameters": sum(t.numel() for name, t in state.items() if name != DECODER_WEIGHT),
        "vocab_size": rows,
        "vocab_file": None if vocab_file is None else str(vocab_file),
        "attention_mask": None if mask is None else mask.text,
    }


def checkpoint_of(run: Path) -> Path:
    """Return the newest checkpoint of ``run``; raise BadInput, with the cause where it is known."""
    try:
        return resolve(run).resolve()
    except BadInput as error:
        if not (run / "config.json").is_file():
            raise
        raise BadInput(
            f"{error}. The run saved none: it reached no target and had fewer samples than "
            f"--num_samples_per_checkpoint, or --skip_checkpoint; run it again with a lower "
            f"--num_samples_per_checkpoint"
        ) from error


def vocabulary_of(folder: Path) -> Path | None:
    """Return the vocabulary beside a run's checkpoints, else the one that its flag named, if any.

    Raises as ``run_config``.
    """
    beside = folder / CHECKPOINTS / VOCABULARY
    named = run_config(folder / "config.json")["run"].get("vocab_file")
    if beside.is_file():
        return beside
    return None if named is None else Path(named).expanduser()


def _tokens(vocab_file: Path, model_rows: int) -> list[str]:
    """Return the tokens; raise BadInput for the vocabulary of another model."""
    tokens = read_vocab(vocab_file, pads=False)
    if not is_padded(len(tokens), model_rows):
        raise BadInput(
            f"{vocab_file} has {len(tokens)} tokens, the model {model_rows} rows for them: give "
            f"the vocabulary that the run was made with"
        )
    return tokens


def _own_vocabulary(folder: Path, model_rows: int) -> Path | None:
    """Return the run's vocabulary; None where it is gone, or of another model."""
    with suppress(BadInput, OSError, ValueError, KeyError, TypeError, AttributeError):
        found = vocabulary_of(folder)
        if found is not None and _tokens(found, model_rows):
            return found
    return None


def _last_step(manifest: Path) -> int | None:
    """Return the step at which the run ended; None where its record does not say so."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        step = read_json(manifest).get("step")
        return step if type(step) is int else None
    return None


def _write_vocabulary(
    work: Path, tokens: Sequence[str], recipe: Mapping[str, Any], naming: Naming
) -> None:
    (work / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    if naming == "huggingface":
        # [CLS] and the like are always in capitals.
        lower = all(t == t.lower() for t in tokens if not t.startswith("["))
        lowercase = recipe.get("lowercase", lower)
        tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
        write_json(work / "tokenizer_config.json", tokenizer)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder and rename it to ``output``; raise BadInput if that fails."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial", dir=output.parent))
    except OSError as error:
        raise BadInput(f"--output {shown(output)}: cannot be written: {error.strerror}") from error
    try:
        yield work
        for file in work.iterdir():
            file.chmod(0o644)
            sync(file)
        work.chmod(0o755)
        work.replace(output)
        sync(output.parent)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if not isinstance(error, (OSError, SafetensorError)):
            raise
        raise BadInput(
            f"--output {shown(output)}: cannot be written, and was removed: {error}"
        ) from error


def recipe_of(path: Path) -> tuple[dict[str, Any], BertConfig]:
    """Return the recipe in a run's ``config.json``, and its model."""
    try:
        recipe = run_config(path)["recipe"]
        return recipe, BertConfig(**recipe["model"])
    except OSError as error:
        raise BadInput(
            f"{shown(path)}: {error.strerror}: the model's shape is unknown without it. Name a "
            f"run's folder, or a checkpoint inside one"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{shown(path)}: not a run's configuration: {shown(error)}") from error


def _classes(manifest: Path, outputs: int) -> dict[str, Any]:
    """Return the fields of a Hugging Face configuration for a head of ``outputs`` rows.

    The classes' names are those in the extras of the run's record, where it has as many: a run that
    was cut off may have none.
    """
    if outputs == 1:
        return {"problem_type": "regression", "id2label": {"0": "score"}, "label2id": {"score": 0}}
    names = [f"LABEL_{number}" for number in range(outputs)]
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = read_json(manifest)["extras"]["labels"]
        if len(set(known)) == outputs and all(isinstance(name, str) for name in known):
            names = known
    return {
        "problem_type": "single_label_classification",
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies, so that a view does not bring its whole tensor into the file."""
    copies = {name: t.clone() for name, t in state.items() if name != DECODER_WEIGHT}
    if DECODER_WEIGHT in state:
        copies[DECODER_WEIGHT] = copies[WORD_EMBEDDING]
    return copies


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
