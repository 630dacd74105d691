# SPDX-License-Identifier: Apache-2.0
"""The shape of a BERT."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bertbench.common.errors import BadInput
from bertbench.common.files import read_json, shown

Gelu = Literal["erf", "tanh"]
NormPosition = Literal["post", "pre"]

GELU_OF_HIDDEN_ACT: dict[str, Gelu] = {
    "gelu": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
"""``hidden_act`` of published configuration files -> its formula."""
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""The sizes that identify a BERT; the vocabulary may be padded."""


_MODEL_TYPES = ("bert", "megatron-bert")
_OTHERWISE = {
    "position_embedding_type": ("absolute",),
    "attention_type": ("full", "original_full"),
    **dict.fromkeys(
        (
            *("is_decoder", "add_cross_attention", "is_encoder_decoder", "relative_attention"),
            *("position_buckets", "attention_window", "conv_kernel_size", "num_hidden_groups"),
            *("rope_theta", "rotary_value", "use_bottleneck", "trigram_input", "pruned_heads"),
            *("pre_layer_norm", "preln", "norm_first", "quantization_config"),
        ),
        (),
    ),
}
"""Fields of published configurations that change the numbers, and the values with which they do
not; absent, null, false, 0 and {} never do."""


def refuse_other_models(path: Path, raw: dict[str, Any]) -> None:
    """Raise BadInput where the configuration in ``path`` is of another architecture than BERT."""
    kind, classes = raw.get("model_type"), raw.get("architectures")
    if kind is None and isinstance(classes, list):
        others = [c for c in classes if not re.match(r"(Megatron)?Bert", str(c))]
        wrong = {"architectures": others} if others else {}
    else:
        wrong = {} if kind in (None, *_MODEL_TYPES) else {"model_type": kind}
    width = raw.get("embedding_size")
    if width is not None and width != raw.get("hidden_size"):
        wrong["embedding_size"] = width
    wrong |= {n: raw[n] for n, same in _OTHERWISE.items() if raw.get(n) and raw[n] not in same}
    for name, value in wrong.items():
        raise BadInput(
            f"{path}: {name} is {shown(repr(value), 60)}: a model of another architecture, which a "
            f"BERT would compute with other numbers. Give a BERT's configuration and weights"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """Everything that decides what a BERT computes; sizes as built."""

    vocab_size: int
    """Rows of the word embedding as built: MLPerf pads 30522 to 30528."""
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    gelu: Gelu = "erf"
    """``erf`` is the exact GELU; MLPerf's reference computes the ``tanh`` approximation."""
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    norm_position: NormPosition = "post"
    """``post``: LayerNorm after each residual sum (BERT). ``pre``: before each sublayer and once at
    the end, none on the embeddings (Megatron)."""

    def __post_init__(self) -> None:
        for name in (
            *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
            *("intermediate_size", "max_position_embeddings", "type_vocab_size"),
        ):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise BadInput(f"model configuration: {name} is {size!r}; give a positive integer")
        if self.type_vocab_size < 2:
            raise BadInput(
                f"model configuration: type_vocab_size is {self.type_vocab_size}, which is not a "
                f"BERT's: its inputs are of two segments, so give 2 or more"
            )
        for name in ("initializer_range", "layer_norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"model configuration: {name} must be positive, and finite")
        if self.hidden_size % self.num_attention_heads:
            raise BadInput(
                f"model configuration: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}; change one of them"
            )
        for name in ("hidden_dropout", "attention_dropout"):
            rate = getattr(self, name)
            if not 0.0 <= rate < 1.0:
                raise BadInput(f"model configuration: {name} is {rate}; it must be in [0, 1)")
        if self.gelu not in ("erf", "tanh"):
            raise BadInput(f"model configuration: gelu is {self.gelu!r}; use 'erf' or 'tanh'")
        if self.norm_position not in ("post", "pre"):
            raise BadInput(
                f"model configuration: norm_position is {self.norm_position!r}; use 'post' or 'pre'"
            )

    @property
    def approximate(self) -> str:
        """The GELU as torch's ``approximate``."""
        return "tanh" if self.gelu == "tanh" else "none"

    def check_agrees(self, path: Path) -> None:
        """Refuse a ``bert_config.json`` that describes another model; padding rows may differ.

        So may GELU where the file calls it "gelu", which NVIDIA's and MLPerf's code computes in
        either form. Raises BadInput.
        """
        found = BertConfig.from_json(path)
        for name in SIZES:
            ours, theirs = getattr(self, name), getattr(found, name)
            if ours != theirs:
                raise BadInput(
                    f"{path}: {name} is {theirs} but the recipe's model has {ours}; choose another "
                    f"recipe or pass --{name} {theirs}"
                )
        for name, differs in (
            ("gelu", found.gelu == "tanh" and self.gelu == "erf"),
            ("layer_norm_eps", found.layer_norm_eps != self.layer_norm_eps),
        ):
            if differs:
                ours, theirs = getattr(self, name), getattr(found, name)
                raise BadInput(
                    f"{path}: {name} is {theirs} but the recipe's model has {ours}: other numbers "
                    f"from the same weights. Pass --{name} {theirs}, or correct the file"
                )
        if found.norm_position == "pre" and self.norm_position == "post":
            raise BadInput(f"{path}: a pre-LN model, and the recipe's is post-LN: other numbers")
        from bertbench.common.data.tokenization import is_padded  # only here: it takes a second

        if not is_padded(*sorted((found.vocab_size, self.vocab_size))):
            raise BadInput(
                f"{path}: vocab_size is {found.vocab_size} but the recipe's model has "
                f"{self.vocab_size} rows; pass --vocab_size {found.vocab_size}"
            )

    @classmethod
    def from_json(
        cls, path: Path, *, gelu: Gelu | None = None, pad_vocab_to: int = 1
    ) -> BertConfig:
        """Read a ``bert_config.json`` or Hugging Face ``config.json``.

        The file's ``hidden_act`` "gelu" means erf; MLPerf's own file says "gelu" and its code
        computes tanh, so its recipes pass ``gelu="tanh"``. ``pad_vocab_to`` rounds the vocabulary
        up to a multiple (8 for MLPerf and NVIDIA checkpoints). Raises BadInput, also for the
        configuration of another architecture.
        """
        try:
            raw = read_json(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else shown(error)
            raise BadInput(f"{path}: cannot be read as a model configuration: {reason}") from error
        if not isinstance(raw, dict):
            raise BadInput(f"{path}: a model configuration must be a JSON object")
        refuse_other_models(path, raw)
        try:
            written = _gelu(raw.get("hidden_act", "gelu"))
            return cls(
                vocab_size=-(-_number(raw, "vocab_size", int) // pad_vocab_to) * pad_vocab_to,
                hidden_size=_number(raw, "hidden_size", int),
                num_hidden_layers=_number(raw, "num_hidden_layers", int),
                num_attention_heads=_number(raw, "num_attention_heads", int),
                intermediate_size=_number(raw, "intermediate_size", int),
                max_position_embeddings=_number(raw, "max_position_embeddings", int, 512),
                type_vocab_size=_number(raw, "type_vocab_size", int, 2),
                gelu=gelu or written,
                hidden_dropout=_number(raw, "hidden_dropout_prob", float, 0.1),
                attention_dropout=_number(raw, "attention_probs_dropout_prob", float, 0.1),
                initializer_range=_number(raw, "initializer_range", float, 0.02),
                layer_norm_eps=_number(raw, "layer_norm_eps", float, 1e-12),
                norm_position="pre" if raw.get("model_type") == "megatron-bert" else "post",
            )
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error

    def as_huggingface(self) -> dict[str, Any]:
        """Return the contents of a Hugging Face ``config.json``; ``from_json`` reads it back."""
        pre = self.norm_position == "pre"
        return {
            "model_type": "megatron-bert" if pre else "bert",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "type_vocab_size": self.type_vocab_size,
            "hidden_act": "gelu_new" if self.gelu == "tanh" else "gelu",
            "hidden_dropout_prob": self.hidden_dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "initializer_range": self.initializer_range,
            "layer_norm_eps": self.layer_norm_eps,
        }


def _number(raw: dict[str, Any], key: str, kind: type, default: float | None = None) -> Any:
    """Return ``raw[key]`` as ``kind``; raise BadInput for another type or a missing key."""
    value = raw.get(key, default)
    if value is None:
        raise BadInput(f"{key} is missing; is this a BERT configuration?")
    if isinstance(value, bool) or not isinstance(value, int | kind):
        raise BadInput(f"{key} is {shown(repr(value), 60)}; it must be of type {kind.__name__}")
    return kind(value)


def _gelu(hidden_act: object) -> Gelu:
    if not isinstance(hidden_act, str) or hidden_act not in GELU_OF_HIDDEN_ACT:
        given = shown(repr(hidden_act), 60)
        raise BadInput(f"hidden_act is {given}; supported: {', '.join(GELU_OF_HIDDEN_ACT)}")
    return GELU_OF_HIDDEN_ACT[hidden_act]


BERT_LARGE = BertConfig(
    vocab_size=30528,  # 30522 padded to a multiple of 8, as NVIDIA's scripts do
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
)
"""Devlin et al. 2018, table of models; GELU is the exact one."""

BERT_BASE = replace(
    BERT_LARGE, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
    intermediate_size=3072,
)  # fmt: skip
"""Likewise."""
