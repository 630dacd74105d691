# SPDX-License-Identifier: Apache-2.0
"""Parameter names of other BERTs, translated from and to ours.

Hugging Face's names are the common form: every file's names are translated to it, and each of our
parameters maps to one or more of them. NVIDIA's scripts differ in ``dense_act``, files converted
from TensorFlow in ``gamma`` and ``beta``, a bare encoder in the missing ``bert.``.
"""

from __future__ import annotations

import re
from typing import Literal

Naming = Literal["huggingface", "nvidia"]

WORD_EMBEDDING = "bert.embeddings.word_embeddings.weight"
DECODER_WEIGHT = "cls.predictions.decoder.weight"
DECODER_BIAS = "cls.predictions.bias"
SEARCH = "mask_search."
"""The prefix of a mask search's tensors in a model: no weights, and of no other software."""
LAYER = re.compile(r"bert\.encoder\.layer\.(\d{1,4})\.")

_MODULES = {
    "encoder.embeddings.word": "bert.embeddings.word_embeddings",
    "encoder.embeddings.position": "bert.embeddings.position_embeddings",
    "encoder.embeddings.token_type": "bert.embeddings.token_type_embeddings",
    "encoder.embeddings.norm": "bert.embeddings.LayerNorm",
    "encoder.final_norm": "bert.encoder.ln",
    "pooler.dense": "bert.pooler.dense",
    "masked_token.transform": "cls.predictions.transform.dense",
    "masked_token.norm": "cls.predictions.transform.LayerNorm",
    "next_sentence": "cls.seq_relationship",
}
_LAYER_MODULES = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "intermediate": ("intermediate.dense",),
    "output": ("output.dense",),
    "output_norm": ("output.LayerNorm",),
}
# Pre-LN norms have other names in Hugging Face (MegatronBert).
_PRE_NORM_MODULES = {"attention_norm": ("attention.ln",), "output_norm": ("ln",)}

# DistributedDataParallel, torch.compile, FSDP, activation checkpointing, NVIDIA's MLPerf model
_WRAPPERS = re.compile(
    r"^(?:(?:module|_forward_module|bert_model_segment|heads_only_segment)\.)+"
    r"|(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_TO_HUGGINGFACE = (
    (r"^(embeddings\.|encoder\.layer\.|encoder\.ln\.|pooler\.)", r"bert.\1"),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"\.dense_act\.", ".dense."),
    # NVIDIA's MLPerf model with --fused_mha
    (r"\.multi_head_attention\.q_(weight|bias)$", r".self.query.\1"),
    (r"\.multi_head_attention\.k_(weight|bias)$", r".self.key.\1"),
    (r"\.multi_head_attention\.v_(weight|bias)$", r".self.value.\1"),
    (r"\.multi_head_attention\.out_proj_(weight|bias)$", r".output.dense.\1"),
    (r"\.attention\.layer_norm\.", ".attention.output.LayerNorm."),
    (r"^cls\.predictions\.decoder\.bias$", DECODER_BIAS),
)
_TO_NVIDIA = (
    (r"\.intermediate\.dense\.", ".intermediate.dense_act."),
    (r"\.pooler\.dense\.", ".pooler.dense_act."),
    (r"\.transform\.dense\.", ".transform.dense_act."),
)


def huggingface_names(name: str, norm_position: str) -> tuple[str, ...]:
    """Return the Hugging Face names of a parameter, whose name is ours or from any known file.

    Our fused QKV has three. A name without counterpart, such as a task's head, is unchanged.
    """
    name = unwrapped(name)
    names = _from_own(name, norm_position)
    return names if names != (name,) else (_rewrite(name, _TO_HUGGINGFACE),)


def unwrapped(name: str) -> str:
    """Return a name without what training software puts around a module."""
    before = None
    while name != before:
        before, name = name, _WRAPPERS.sub("", name)
    return name


def to_nvidia(name: str) -> str:
    """Return a Hugging Face name in the form of NVIDIA's scripts."""
    return _rewrite(name, _TO_NVIDIA)


def _from_own(own: str, norm_position: str) -> tuple[str, ...]:
    if own == "masked_token.decoder_bias":
        return (DECODER_BIAS,)
    module, _, kind = own.rpartition(".")
    layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(\w+)", module)
    if layer is None:
        return (f"{_MODULES[module]}.{kind}",) if module in _MODULES else (own,)
    number, part = layer.groups()
    modules = _LAYER_MODULES | (_PRE_NORM_MODULES if norm_position == "pre" else {})
    if part not in modules:
        return (own,)
    return tuple(f"bert.encoder.layer.{number}.{name}.{kind}" for name in modules[part])


def _rewrite(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
