# SPDX-License-Identifier: Apache-2.0
"""The meaning of each flag of the reference pretraining scripts in this benchmark.

The references are run_pretraining.py of NVIDIA's MLPerf Training v1.0 and v5.0, of DeepSparkHub,
and of NVIDIA's DeepLearningExamples (2020, and its head), which SparseBERT copies.
"""

from __future__ import annotations

from bertbench.benchmarks.phases.flags import PHASE_FLAGS
from bertbench.common.config.reference_flags import (
    FUSED,
    Divides,
    Meaning,
    Notes,
    Refuses,
    Sets,
    as_float,
    as_whole,
    each,
)


def _interval(text: str) -> str:
    """Convert -1 (off) to 0."""
    return str(max(0, int(as_whole(text))))


def _target(text: str) -> str:
    """Convert 0.0 (no target) to None."""
    return "None" if text.lower() == "none" or as_float(text) <= 0 else text


def _warmup(text: str) -> dict[str, str]:
    """Set both warm-up fields: a value below 1 is a proportion of the steps, else their number."""
    proportion = as_float(text) < 1
    return {
        "warmup_proportion": text if proportion else "0",
        "warmup_steps": "0" if proportion else as_whole(text),
    }


WARMUP = Divides(_warmup)
"""The meaning of --warmup, which no reference has."""

UNPADDED = "padding is never computed: sequences lie end to end"
BALANCED = "every rank always gets a near-equal share of the real tokens"
GRAPHS = "graphs are not captured here; the backend decides how its kernels are launched"
REDUCED = "torch's DDP all-reduces gradients in --reduce_dtype, overlapped with the backward pass"
DENSE = "the output layer always sees masked positions only"
UPDATE = "LAMB updates the whole model on every rank and needs no tuning"
PACKED = "packed files are recognised and unpacked; single sequences are counted"
EVALUATION = "evaluation needs no such switch"

_DWU_VALUES = (
    "dwu_group_size dwugs dwu_num_blocks dwunb dwu_num_chunks dwunc dwuchks dwu_num_rs_pg dwurspg "
    "dwu_num_ar_pg dwuarpg dwu_num_ag_pg dwuagpg"
)
_FUSIONS = (
    "fused_mha no_fused_mha fused_gelu_bias fused_dropout_add enable_fuse_dropout "
    "disable_fuse_mask disable_fuse_scale disable_fuse_qkv disable_apex_softmax enable_stream "
    "fused_bias_fc fused_bias_fc_loss_head fused_bias_mha fused_gemm_gelu disable_jit_fusions"
)


FP8 = Refuses("TransformerEngine's FP8 layers are not used; the suite's own are --precision fp8")
REFERENCE: dict[str, Meaning] = {
    **PHASE_FLAGS,
    # -- same quantity, other name or other spelling of its values
    "lr": Sets("learning_rate", str),
    "max_steps": Sets("max_steps", as_whole),
    "max_samples_termination": Sets("max_samples_termination", as_whole),
    "warmup_steps": Sets("warmup_steps", as_whole),
    "start_warmup_step": Sets("start_warmup_step", as_whole),
    "eval_iter_samples": Sets("eval_iter_samples", _interval),
    "num_samples_per_checkpoint": Sets("num_samples_per_checkpoint", _interval),
    "target_mlm_accuracy": Sets("target_mlm_accuracy", _target),
    "average_packing_rate": Sets("average_packing_rate", as_whole),
    "synthetic_input": Sets("synthetic", "True"),
    # -- always so, or never needed here
    **each("unpad unpad_fmha pad pad_fmha", Notes(UNPADDED)),
    **each("exchange_padding order_samples", Notes(BALANCED)),
    **each(_FUSIONS, Notes(FUSED)),
    **each("use_cuda_graph eval_cuda_graph cuda_graphs", Notes(GRAPHS)),
    **each("cuda_graph_mode max_iterations_per_graph", Notes(GRAPHS, takes_value=True)),
    **each("use_ddp use_gradient_as_bucket_view", Notes(REDUCED)),
    **each("allreduce_post_accumulation allreduce_post_accumulation_fp16", Notes(REDUCED)),
    "ddp_type": Notes(REDUCED, takes_value=True),
    **each("distributed_lamb dwu_overlap_reductions dwu_e5m2_allgather", Notes(UPDATE)),
    **each(_DWU_VALUES, Notes(UPDATE, takes_value=True)),
    "packed_samples": Notes(PACKED, keeps=True),
    "max_pack_factor": Notes(PACKED, takes_value=True),
    "load_eval_synchronously": Notes(EVALUATION),
    **each("dense_seq_output no_dense_sequence_output", Notes(DENSE)),
    "do_train": Notes("this benchmark always trains"),
    "bert_model": Notes("the model is the recipe's, as in the reference", takes_value=True),
    "num_epochs_to_generate_seeds_for": Notes(
        "the order of any epoch follows from --seed", takes_value=True
    ),
    # -- would change the numbers or their meaning
    "init_tf_checkpoint": Refuses(
        "TensorFlow checkpoints are not supported; give the converted .pt or .safetensors file "
        "with --init_checkpoint",
        takes_value=True,
    ),
    "checkpoint_activations": Refuses(
        "activations are always kept; a smaller --micro_batch saves memory and gives the same "
        "result"
    ),
    "opt_level": Refuses(
        "parameters are always float32 with 16-bit matrix products (apex O1/O2); for all-float32 "
        "give --precision fp32",
        takes_value=True,
        off=("O1", "O2"),
    ),
    "bypass_amp": Refuses("overflow checks are part of every result and always run"),
    "train_mlm_accuracy_window_size": Refuses(
        "only held-out accuracy stops a run: give --target_mlm_accuracy",
        takes_value=True,
        off=("0",),
    ),
    "sustained_training_time": Refuses(
        "to keep training past the target give --target_mlm_accuracy None and --max_minutes",
        takes_value=True,
        off=("0",),
    ),
    "use_transformer_engine": FP8,
    "use_transformer_engine2": FP8,
}
"""The references' flags; those not listed, nor in SHARED, are fields of the same name."""
