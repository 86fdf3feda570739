"""What the stock Python package makes, and what it sees in our files.

make FOLDER        every type NumPy and ml_dtypes have: all.safetensors, facts.json
check FOLDER       sample.mt against sample.json, stripped.safetensors against save()
onnx FOLDER        the initialisers of a model: model.onnx, model.safetensors
onnx-check FOLDER  model.mt against model.onnx
"""

import json
import pathlib
import sys

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file

NUMPY = [
    np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.float16, np.uint32, np.int32, np.float32,
    np.uint64, np.int64, np.float64, np.complex64,
]
SMALL = [
    "bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float8_e4m3fnuz",
    "float8_e5m2fnuz",
]
# Stored one to a byte by ml_dtypes, packed in files.
PACKED = {"F4": ("float4_e2m1fn", 4), "F6_E2M3": ("float6_e2m3fn", 6), "F6_E3M2": ("float6_e3m2fn", 6)}


def facts(array):
    wide = None
    if array.dtype != np.complex64:
        wide = array.astype(np.float32).astype("<f4").tobytes().hex()
    return {"shape": list(array.shape), "bytes": array.tobytes().hex(), "f32": wide}


def make(folder):
    random = np.random.default_rng(1)
    arrays = {}
    for kind in NUMPY:
        name = np.dtype(kind).name
        shape = (3, 5, 2)
        if kind is np.bool_:
            arrays[name] = random.integers(0, 2, shape).astype(bool)
        elif np.issubdtype(kind, np.integer):
            info = np.iinfo(kind)
            arrays[name] = random.integers(info.min, info.max, shape, dtype=kind, endpoint=True)
        elif kind is np.complex64:
            arrays[name] = (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(kind)
        else:
            arrays[name] = random.normal(size=shape).astype(kind)
    for name in SMALL:
        kind = np.dtype(getattr(ml_dtypes, name))
        count = 1 << (8 * kind.itemsize)
        arrays[name] = np.arange(count, dtype=f"<u{kind.itemsize}").view(kind)
    arrays["none"] = np.zeros((0, 4), dtype=np.float32)
    arrays["one"] = np.array(2.5, dtype=np.float64)
    save_file(arrays, folder / "all.safetensors", metadata={"format": "np"})
    packed = {}
    for name, (theirs, bits) in PACKED.items():
        patterns = np.arange(1 << bits, dtype=np.uint8)
        number = sum(int(p) << (bits * at) for at, p in enumerate(patterns))
        wide = patterns.view(np.dtype(getattr(ml_dtypes, theirs))).astype(np.float32)
        packed[name] = {
            "shape": [len(patterns)],
            "bytes": number.to_bytes(len(patterns) * bits // 8, "little").hex(),
            "f32": wide.astype("<f4").tobytes().hex(),
        }
    all_facts = {"arrays": {name: facts(array) for name, array in arrays.items()}, "packed": packed}
    (folder / "facts.json").write_text(json.dumps(all_facts))


def check(folder):
    expected = json.loads((folder / "sample.json").read_text())
    tensors = load_file(folder / "sample.mt")
    with safe_open(folder / "sample.mt", framework="np") as opened:
        metadata = opened.metadata()
        assert set(opened.keys()) == set(tensors)
    assert metadata["metatensor"] == "1" and metadata["format"] == "pt", metadata
    index = json.loads(metadata["mt.index"])

    pads = {name for name in tensors if name.startswith("__pad__.")}
    assert pads
    for name in pads:
        assert tensors[name].dtype == np.uint8 and not tensors[name].any(), name

    np.testing.assert_array_equal(tensors["weights"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert tensors["nothing"].shape == (0, 4) and tensors["one"] == np.float16(1.0)
    assert tensors["flags"].tolist() == [True, False, True]

    things = index["tensors"]["things"]
    theirs = {"Uint32": "<u4", "Boolean": "?", "Float32": "<f4", "String": "S"}
    formats = []
    for field in things["fields"]:
        form = theirs[field["type"]]
        length = field.get("len", 1)
        if field["type"] == "String":
            formats.append(f"S{length}")
        else:
            formats.append(form if length == 1 else (form, (length,)))
    kind = np.dtype({
        "names": [field["path"] for field in things["fields"]],
        "formats": formats,
        "offsets": [field["off"] for field in things["fields"]],
        "itemsize": things["stride"],
    })
    records = np.frombuffer(tensors["things"].tobytes(), dtype=kind)
    assert len(records) == things["count"] == len(expected["things"])
    for record, (number, live, place, name) in zip(records, expected["things"]):
        assert record["id"] == number and record["live"] == live
        assert record["at/x"].tolist() == [np.float32(x) for x in place]
        assert record["name"].decode() == name

    data, offsets = tensors["texts"].tobytes(), tensors["texts.__off__"]
    assert offsets.dtype == np.uint64
    items = [data[a:b].decode() for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist())]
    assert items == expected["texts"], items

    kept = {name: tensor for name, tensor in tensors.items() if name not in pads}
    stripped = (folder / "stripped.safetensors").read_bytes()
    assert save(kept, metadata={"format": "pt"}) == stripped


def initialisers(folder):
    import onnx

    return onnx.load(folder / "model.onnx").graph.initializer


def make_onnx(folder):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(2)
    kinds = ["float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "uint64", "bool"]
    arrays = {f"/layer.{at}/{kind}": (random.normal(size=(4, 3)) * 9).astype(kind) for at, kind in enumerate(kinds)}
    arrays["bias"] = random.normal(size=7).astype(ml_dtypes.bfloat16)
    arrays["scale"] = np.array(0.125, dtype=np.float32)
    arrays["nothing"] = np.zeros((0, 3), dtype=np.float32)
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 3]) for name in ["x", "y"]]
    node = helper.make_node("Add", ["x", "/layer.0/float32"], ["y"])
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:], initializer=weights)
    onnx.save(helper.make_model(graph), folder / "model.onnx")
    save_file({it.name: numpy_helper.to_array(it) for it in initialisers(folder)}, folder / "model.safetensors")
    facts = {it.name: {"shape": list(it.dims), "bytes": it.raw_data.hex()} for it in initialisers(folder)}
    (folder / "facts.json").write_text(json.dumps(facts))


def check_onnx(folder):
    from onnx import numpy_helper

    tensors = load_file(folder / "model.mt")
    theirs = {it.name: it for it in initialisers(folder)}
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("__pad__.")}
    assert set(kept) == set(theirs)
    for name, array in kept.items():
        again = numpy_helper.from_array(array, name)
        assert again.SerializeToString(deterministic=True) == theirs[name].SerializeToString(deterministic=True), name


{"make": make, "check": check, "onnx": make_onnx, "onnx-check": check_onnx}[sys.argv[1]](pathlib.Path(sys.argv[2]))
