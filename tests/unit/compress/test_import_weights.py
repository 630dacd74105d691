# SPDX-License-Identifier: Apache-2.0
"""bertbench import-weights: Megatron's pickle gives the model back, and runs nothing in it."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bertbench.benchmarks.bert_squad.model import BertForQuestionAnswering
from bertbench.common.cli.main import main
from bertbench.common.compress.layers import compress, compressed_layers, named_quantizers
from bertbench.common.compress.start import Compression, calibrate, ranges_in, take_ranges
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.exchange import numpy_pickle
from bertbench.common.exchange.numpy_pickle import read_arrays
from bertbench.common.model.ops import Ops
from bertbench.common.model.weights import load_pretrained
from tests.unit.compress.conftest import batch, config

LAYERS = 2
GIVEN = batch(9, 30, 4, 41)


def random_model(seed: int) -> BertForQuestionAnswering:
    torch.manual_seed(seed)
    made = BertForQuestionAnswering(config("pre", LAYERS), Ops()).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(4 if p.dim() > 1 else 1).add_(0.03 * torch.randn_like(p))
    return made


def megatron(model: BertForQuestionAnswering) -> dict[str, np.ndarray]:
    """The layout as the published loader reads it, written down name by name."""
    e = model.encoder
    t, layers = e.embeddings, list(e.layers)
    found = {
        "bert.embedding.word_embeddings.weight": t.word.weight,
        "bert.embedding.tokentype_embeddings.weight": t.token_type.weight,
        "bert.embedding.position_embeddings.weight": t.position.weight,
        "qa_outputs.weight": model.qa_outputs.weight,
        "qa_outputs.bias": model.qa_outputs.bias,
    }
    for i, layer in enumerate(layers):
        after = layers[i + 1].attention_norm if i + 1 < LAYERS else e.final_norm
        for name, part in {
            "attention.query_key_value": layer.qkv, "attention.output.dense":
            layer.attention_output, "attention.output.LayerNorm": layer.output_norm,
            "intermediate.dense_act": layer.intermediate, "output.dense": layer.output,
            "output.LayerNorm": after,
        }.items():  # fmt: skip
            for kind in ("weight", "bias"):
                found[f"bert.encoder.layers.{i}.{name}.{kind}"] = getattr(part, kind)
    for kind in ("weight", "bias"):
        found[f"bert.embeddings.LayerNorm.{kind}"] = getattr(layers[0].attention_norm, kind)
    return {name: p.detach().numpy() for name, p in found.items()}


def ranges_of(model: BertForQuestionAnswering) -> dict[str, np.ndarray]:
    found = {}
    for i, layer in enumerate(compressed_layers(model)):
        for name, site in (
            ("attention.query_key_value._input", "qkv_input"),
            ("attention.matmul_q", "q"), ("attention.matmul_k", "k"), ("attention.matmul_v", "v"),
            ("attention.matmul_a", "probabilities"),
            ("attention.output.dense._input", "attention_output_input"),
            ("attention.output.add_local_input", "attention_added"),
            ("attention.output.add_residual_input", "attention_residual"),
            ("intermediate.dense_act._input", "intermediate_input"),
            ("output.dense._input", "output_input"),
            ("output.add_local_input", "output_added"),
            ("output.add_residual_input", "output_residual"),
        ):  # fmt: skip
            amax = layer.quantizer(site).amax.numpy()
            found[f"bert.encoder.layers.{i}.{name}_quantizer._amax"] = amax
    last = f"bert.encoder.encoder.layers.{LAYERS - 1}.output.LayerNorm_output_quantizer._amax"
    return found | {last: model.encoder.quantizers["encoder_output"].amax.numpy()}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(GIVEN)


def imported(content: object, folder: Path, protocol: int = 4) -> Path:
    (folder / "megatron.pkl").write_bytes(pickle.dumps(content, protocol))
    out = folder / f"out{protocol}"
    assert main(["import-weights", str(folder / "megatron.pkl"), "--output", str(out)]) == 0
    return out / "model.safetensors"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_weights_come_back(protocol, tmp_path, capsys):
    model = random_model(1)
    stored = megatron(model)
    if protocol == 3:  # the same values, stored otherwise
        stored = OrderedDict(
            (n, np.asfortranarray(a.astype(">f8")) if i % 2 else a)
            for i, (n, a) in enumerate(stored.items())
        )
    file = imported(stored, tmp_path, protocol)
    assert "pre-LN, 2 layers of 32" in capsys.readouterr().out
    other = random_model(2)
    assert not torch.allclose(logits(model), logits(other), atol=1e-2)
    report = load_pretrained(other, file, require="all")
    assert not report.unexpected and len(report.matched) == len(list(model.parameters()))
    assert torch.allclose(logits(model), logits(other), rtol=0, atol=1e-6)


def test_a_quantised_model_comes_back_with_its_ranges(tmp_path, capsys):
    model = random_model(1)
    compress(model, prune=True, quantize=True)
    for layer in compressed_layers(model):
        layer.prune()
    calibrate(model, lambda: model(GIVEN), World.from_env())
    stored = megatron(model) | ranges_of(model)
    stored["bert.pooler.dense.weight"] = np.ones((2, 2), np.float32)
    # Numbers may be numpy's scalars or Python's, too.
    names = [name for name in stored if name.endswith("_amax")]
    stored[names[0]], stored[names[1]] = stored[names[0]][()], float(stored[names[1]])
    file = imported(stored, tmp_path)
    text = capsys.readouterr().out
    assert f"{12 * LAYERS + 1} activation ranges" in text and "bert.pooler.dense.weight" in text
    assert main(["sparsity", "check", str(file)]) == 0

    other = random_model(2)
    compress(other, prune=True, quantize=True)
    load_pretrained(other, file, require="all")
    started = Compression(True, True, ranges=ranges_in(file))
    notes = started.start(other, [], lambda batch, step: None, World.from_env())
    assert "25 ranges are those of the starting weights, and 8 weights" in notes[-1]
    facts = started.facts(other)
    assert facts["calibration_samples"] is facts["calibration_percentile"] is None
    for name, quantizer in named_quantizers(model).items():
        assert torch.equal(quantizer.amax, named_quantizers(other)[name].amax)
    assert torch.equal(logits(model), logits(other))

    known = ranges_in(file)
    for name, message in (
        ("encoder.layers.0.quantizers.k", "not those of this model: encoder.layers.0.quantizers.k"),
        ("other", "not those of this model: other"),
    ):
        changed = {n: t for n, t in known.items() if n != name}
        changed |= {"other": torch.ones(())} if name == "other" else {}
        with pytest.raises(BadInput, match=message):
            take_ranges(other, changed)
    with pytest.raises(BadInput, match="is not a number above 0"):
        take_ranges(other, known | {"encoder.layers.0.quantizers.k": torch.tensor(float("nan"))})


def test_ranges_are_only_looked_for_where_they_can_be(tmp_path):
    save_file({"a.amax": torch.ones(()), "b": torch.ones(2)}, tmp_path / "w.safetensors")
    assert ranges_in(tmp_path / "w.safetensors") == {"a": torch.ones(())}
    assert ranges_in(None) == ranges_in(tmp_path / "w.pt") == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bert.encoder.layers.1.output.dense.bias": None}, "lacks 1 weights of a Megatron BERT "
         "of 2 layers, among them bert.encoder.layers.1.output.dense.bias"),
        ({"bert.encoder.layers.0.attention.matmul_q_quantizer._amax": 1.0},
         "has 1 of 25 activation ranges"),
        ({"bert.encoder.encoder.layers.1.output.LayerNorm.bias": np.ones(32, np.float32)},
         "two weights bert.encoder.layers.1.output.LayerNorm.bias, which differ"),
        ({"bert.embeddings.LayerNorm.bias": np.zeros(32, object)}, "elements are O8, which are "
         "Python objects"),
        ({"bert.embeddings.LayerNorm.bias": np.zeros(32, np.int32)}, "elements are i4: weights"),
        ({"bert.embeddings.LayerNorm.bias": "text"}, "LayerNorm.bias must be an array"),
        ({"bert.embeddings.LayerNorm.bias": np.zeros(2, [("a", "f4")])}, "elements are V4"),
        ({"bert.embeddings.LayerNorm.bias": Path("x")}, "it names pathlib.PosixPath"),
        ({1: np.zeros(2)}, "its keys must be names"),
    ],
)  # fmt: skip
def test_other_content_is_refused(change, message, tmp_path, capsys):
    stored = {n: a for n, a in (megatron(random_model(1)) | change).items() if a is not None}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(stored))
    out = tmp_path / "out"
    assert main(["import-weights", str(tmp_path / "m.pkl"), "--output", str(out), "--json"]) == 2
    assert message in " ".join(capsys.readouterr().err.split()) and not out.exists()


class Attack:
    def __init__(self, function, *given):
        self.reduced = function, given

    def __reduce__(self):
        return self.reduced


def deep(end: bytes) -> bytes:
    return b"\x80\x04}" + b")" + b"\x85" * 150_000 + end


GLOBALS = (
    (os.system, "touch {}"), (eval, "open({!r}, 'w')"), (exec, "open({!r}, 'w')"),
    (open, "{}", "w"), (np.load, "{}"), (np.memmap, "{}", "uint8", "w+", 0, 9),
    (getattr, np, "x"), (pickle.loads, b"N."), (torch.load, "{}"),
)  # fmt: skip


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("call", GLOBALS, ids=lambda call: call[0].__name__)
def test_functions_are_refused_by_name_and_not_called(call, protocol, tmp_path, monkeypatch):
    made = tmp_path / "made"
    given = [g.format(str(made)) if isinstance(g, str) else g for g in call[1:]]
    given = [None if g is np else g for g in given]
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"a": Attack(call[0], *given)}, protocol))
    monkeypatch.setattr(pickle, "Unpickler", None)
    with pytest.raises(BadInput, match="Nothing in it was executed") as refused:
        read_arrays(tmp_path / "m.pkl")
    if protocol:
        assert f".{call[0].__name__}, which no array needs" in str(refused.value)
    assert not made.exists()


VALID = pickle.dumps({"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "exhausted"),
        (VALID[:-9], "."),
        (VALID[: len(VALID) // 2], "."),
        (b"\x80\x04N.", "holds something else"),
        (b"\x80\x04}}.", "."),
        (b"\x80\x04.", "."),
        (b"\x80\x040.", "instruction POP"),
        (b"\x80\x02(t.", "holds something else"),
        (b"\x80\x02t.", "damaged"),
        (b"\x80\x02}\x85\x85R.", "damaged|than a function"),
        (b"\x80\x02}h\x07.", "damaged"),
        (b"\x80\x02}U\x01as.", "instruction SHORT_BINSTRING"),
        (b"\x80\x02}X\x01\x00\x00\x00aP1\n.", "instruction PERSID"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
        (b"\x80\x02cnumpy\nndarray\n}b.", "gives a state"),
        (b"\x80\x02cnumpy\ndtype\n" + deep(b"\x85R.")[3:], "damaged|not named by text"),
        (b"\x80\x02cnumpy\ndtype\n)" + b"\x85" * 150_000 + b"\x85R.", "not named by text"),
        (deep(b"Ns."), "its keys must be names"),
        (deep(b"\x93."), "names"),
        (deep(b"R."), "than a function"),
        (b"\x80\x02" + b"(" * 50_000 + b"t" * 50_000 + b".", "holds something else"),
        (b"\x80\x04}" + b"}0" * 3, "instruction POP"),
        (b"\x80\x04" + b"}" * 200_001 + b".", "more than 200,000 instructions"),
        (b"\x80\x04B\xff\xff\xff\x7f.", "."),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b".", "."),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".", "."),
        (b"\x80\x02}r\xff\xff\xff\xff.", "no pickled"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "."),
        (b"I" + b"9" * 100_000 + b"\n.", "."),
    ],
)
def test_damaged_pickles_end_in_one_line(content, message, tmp_path):
    (tmp_path / "m.pkl").write_bytes(content)
    if message == "no pickled":  # a memo of 4 billion entries would fill a list, not a dictionary
        assert read_arrays(tmp_path / "m.pkl") == {}
        return
    with pytest.raises(BadInput, match=message) as refused:
        read_arrays(tmp_path / "m.pkl")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def array(shape: tuple, data: bytes, dtype: str = "f4") -> bytes:
    """A pickle of one array whose shape and content are the given ones."""
    stream = io.BytesIO()
    made = pickle.Pickler(stream, 4)
    made.dump({"a": np.frombuffer(bytes(4), np.float32)})
    kind = pickle.loads(pickle.dumps(np.dtype(dtype)))
    state = Attack(np.ndarray, (0,))
    state.reduced = (np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"),
                     (1, shape, kind, False, data))  # fmt: skip
    return pickle.dumps({"a": state}, 4)


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((1 << 40,), bytes(4)), ((-1, -1), bytes(4)), ((1.0,), bytes(4)), ((True,), bytes(4)),
        ((1,) * 9, bytes(4)), ((2,), bytes(4)), ((1,), "text"), ("1", bytes(4)), (None, bytes(4)),
        ((1 << 62, 1 << 62, 0), bytes(4)),
    ],
)  # fmt: skip
def test_shapes_that_their_content_does_not_fill_are_refused(shape, data, tmp_path):
    (tmp_path / "m.pkl").write_bytes(array((1,), bytes(4)))
    assert read_arrays(tmp_path / "m.pkl")["a"].tolist() == [0.0]
    (tmp_path / "m.pkl").write_bytes(array(shape, data))
    with pytest.raises(BadInput, match="do not agree"):
        read_arrays(tmp_path / "m.pkl")


def test_content_is_not_multiplied_and_no_file_is_too_large(tmp_path, monkeypatch):
    once = np.ones(1000, np.float32)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({f"n{i}": once for i in range(50)}))
    with pytest.raises(BadInput, match="share their content"):
        read_arrays(tmp_path / "m.pkl")
    monkeypatch.setattr(numpy_pickle, "LARGEST", 1 << 10)
    with pytest.raises(BadInput, match="larger than"):
        read_arrays(tmp_path / "m.pkl")
    with pytest.raises(BadInput, match="not a plain file"):
        read_arrays(tmp_path)


def test_every_single_byte_may_be_wrong(tmp_path):
    """Each of the bytes is replaced by each of some values: an array or one line, never more."""
    outcomes = set()
    for at in range(len(VALID)):
        for value in (0x2E, 0x52, 0xFF):
            (tmp_path / "m.pkl").write_bytes(VALID[:at] + bytes([value]) + VALID[at + 1 :])
            try:
                outcomes.add(type(read_arrays(tmp_path / "m.pkl")))
            except BadInput as error:
                outcomes.add(type(error))
    assert outcomes == {dict, BadInput}


def test_the_folder_is_new_and_complete(tmp_path, capsys):
    model = random_model(1)
    file = imported(megatron(model), tmp_path)
    assert {p.name for p in file.parent.iterdir()} == {"model.safetensors"}
    assert "encoder.final_norm.weight" in load_file(file)
    words = ["import-weights", str(tmp_path / "megatron.pkl"), "--output"]
    assert main([*words, str(file.parent)]) == 2
    assert "exists: name a new folder" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "again"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["num_hidden_layers"], made["head"], made["activation_ranges"]) == (2, True, 0)
    assert made["parameters"] == sum(p.numel() for p in model.parameters())
