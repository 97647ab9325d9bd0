import logging
import sys
import types
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdet.interop import load_file, read_file
from jaxdet.types import UserError

WEIGHTS = {"conv1.weight": np.arange(4, dtype=np.float32), "bn1.num": np.array(3)}


class Tensor:
    """As much of torch's tensor as reading needs."""

    def __init__(self, value):
        self.value = np.asarray(value)

    def is_floating_point(self):
        return self.value.dtype.kind == "f"

    def float(self):
        return Tensor(self.value.astype(np.float32))

    def detach(self):
        return self

    def numpy(self):
        return self.value


def put_torch(monkeypatch, content):
    """Stands in for torch: the tests run where it is not installed."""

    def load(path, *, map_location, weights_only):
        assert map_location == "cpu" and weights_only
        if isinstance(content, Exception):
            raise content
        return content

    torch = types.SimpleNamespace(load=load, is_tensor=lambda value: isinstance(value, Tensor))
    monkeypatch.setitem(sys.modules, "torch", torch)


def assert_equals_weights(found):
    assert found.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_arrays_come_back_without_the_parallel_prefix(tmp_path, ending, prefix):
    path = tmp_path / f"weights{ending}"
    named = {prefix + name: value for name, value in WEIGHTS.items()}
    if ending == ".npz":
        np.savez(path, **named)
    else:
        save_file(named, path)
    assert_equals_weights(load_file(path))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "meta": {"epoch": 12}},
        lambda weights: {"model": weights, "epoch": 12},
        lambda weights: {"model_state_dict": weights, "epoch": 12},
        lambda weights: {"ema": weights, "epoch": 12},
        lambda weights: {"model": {"state_dict": weights}},
        lambda weights: {**weights, "epoch": 12},
    ],
    ids=["bare", "state_dict", "model", "model_state_dict", "ema", "two", "beside numbers"],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_weights_are_taken_out_of_their_wrapping(tmp_path, monkeypatch, wrap, prefix):
    put_torch(monkeypatch, wrap({prefix + name: Tensor(v) for name, v in WEIGHTS.items()}))
    path = tmp_path / "weights.pth"
    path.touch()
    assert_equals_weights(load_file(path))


@pytest.mark.parametrize(
    "meta, wanted",
    [
        ({"CLASSES": ("cat", "dog"), "epoch": 12}, ("cat", "dog")),  # mmdetection 2.
        ({"dataset_meta": {"classes": ["cat"], "palette": [(1, 2, 3)]}}, ("cat",)),  # And 3.
        ({"dataset_meta": {"CLASSES": ("cat",)}}, ("cat",)),
        ({"CLASSES": None}, None),
        ({"CLASSES": "cat"}, None),
        ({"CLASSES": (1, 2)}, None),
        ({"dataset_meta": 3}, None),
        (None, None),
    ],
)
def test_the_class_names_of_mmdetections_files_are_read(tmp_path, monkeypatch, meta, wanted):
    weights = {name: Tensor(v) for name, v in WEIGHTS.items()}
    put_torch(monkeypatch, {"state_dict": weights, "meta": meta})
    path = tmp_path / "weights.pth"
    path.touch()
    found = read_file(path)
    assert found.class_names == wanted
    assert_equals_weights(found.tensors)


def test_torchs_half_floats_are_read_as_float32(tmp_path, monkeypatch):
    put_torch(monkeypatch, {"a": Tensor(np.ones(2, np.float16)), "n": Tensor(np.int64(1))})
    path = tmp_path / "weights.pt"
    path.touch()
    found = load_file(path)
    assert found["a"].dtype == np.float32 and found["n"].dtype == np.int64


@pytest.mark.parametrize(
    "content, message",
    [
        (ValueError("bad pickle\nand more"), "weights.pth: .*save its state_dict alone$"),
        ([1, 2], "weights.pth: wanted a dictionary of tensors; found list"),
        ({}, "weights.pth: wanted tensors by their names.*; found nothing$"),
        (
            {"net": {"a": Tensor(1)}, "epoch": 3},
            "or under state_dict, model, .*; found the keys 'net', 'epoch'$",
        ),
        (dict(enumerate([Tensor(1)] * 9)), "; found the keys 0, 1, 2, 3, 4, ...$"),
    ],
)
def test_a_torch_file_without_weights_is_one_clear_line(tmp_path, monkeypatch, content, message):
    put_torch(monkeypatch, content)
    path = tmp_path / "weights.pth"
    path.touch()
    with pytest.raises(UserError, match=message):
        load_file(path)


@pytest.mark.parametrize("number", [1, 2])
def test_tensors_whose_keys_are_no_text_are_left_out_and_counted(
    tmp_path, monkeypatch, caplog, number
):
    odd = {i: Tensor(0) for i in range(number)}
    put_torch(monkeypatch, {name: Tensor(v) for name, v in WEIGHTS.items()} | odd)
    path = tmp_path / "weights.pth"
    path.touch()
    with caplog.at_level(logging.WARNING, "jaxdet"):
        assert_equals_weights(load_file(path))
    assert f"{number} of {number + 2} tensors left out" in caplog.messages[0]


class Quantised(Tensor):
    dtype, layout, device = "torch.quint8", "torch.strided", "cpu"

    def numpy(self):
        raise TypeError("Got unsupported ScalarType QUInt8")


def test_a_tensor_that_is_not_plain_is_named(tmp_path, monkeypatch):
    put_torch(monkeypatch, {"a": Tensor(np.ones(2)), "b": Quantised(1)})
    path = tmp_path / "weights.pth"
    path.touch()
    with pytest.raises(UserError, match="weights.pth: b wants a plain tensor, found quint8 str"):
        load_file(path)


@pytest.mark.parametrize("name", ["a", "module.a"])
def test_an_array_that_is_there_with_and_without_the_prefix_is_refused(tmp_path, name):
    path = tmp_path / "weights.npz"
    np.savez(path, **{name: np.ones(2)}, **{n: np.zeros(2) for n in {"a", "module.a"} - {name}})
    with pytest.raises(UserError, match="weights.npz: wants a once, found module.a, too"):
        load_file(path)


def test_a_torch_file_without_torch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "weights.pth"
    path.touch()
    with pytest.raises(UserError, match=r'weights.pth: .*pip install "jaxdet\[torch\]"'):
        load_file(path)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_one_clear_line(tmp_path, ending, content):
    path = tmp_path / f"weights{ending}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights{ending}: cannot be read as a .*{ending}"):
        load_file(path)


def test_an_archive_of_pickled_objects_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="weights.npz: cannot be read"):
        load_file(path)


def test_an_array_without_a_name_is_refused(tmp_path):
    with (tmp_path / "weights.npz").open("wb") as file:
        np.save(file, np.zeros((3, 2)))  # dict() would take its rows for names and values.
    with pytest.raises(UserError, match=r"weights.npz: .*\.npz archive: it holds one array"):
        load_file(tmp_path / "weights.npz")


def test_an_archive_of_other_files_is_refused(tmp_path):
    np.savez(tmp_path / "weights.npz", a=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "weights.npz", "a") as file:
        file.writestr("archive/data.pkl", b"as torch has it")
    with pytest.raises(UserError, match=r"archive: archive/data\.pkl in it is no array$"):
        load_file(tmp_path / "weights.npz")


@pytest.mark.parametrize(
    "name, message", [("none.npz", "no such file"), ("w.bin", "ending in .npz")]
)
def test_missing_files_and_other_endings_are_refused(tmp_path, name, message):
    (tmp_path / "w.bin").touch()
    with pytest.raises(UserError, match=message):
        load_file(tmp_path / name)
