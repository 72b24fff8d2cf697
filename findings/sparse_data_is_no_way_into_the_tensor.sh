#!/usr/bin/env bash
# torch 2.14.1: what is written to .data or .detach() of a sparse tensor does not reach the tensor.
#
# Guess: as with dense tensors, .data and .detach() share the values, so that copy_() and mul_() on them change the
# tensor. Seen: a sparse COO tensor stays as it was, without an error, because both give an object with indices and
# values of its own to replace. Only an in-place operation on the tensor itself, or an assignment to .data, changes it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch

assert torch.__version__.split("+")[0] == "2.14.1"
WRITES = {
    ".data.mul_": lambda tensor, twice: tensor.data.mul_(2.0),
    ".data.copy_": lambda tensor, twice: tensor.data.copy_(twice),
    ".detach().copy_": lambda tensor, twice: tensor.detach().copy_(twice),
    "mul_": lambda tensor, twice: tensor.mul_(2.0),
    "copy_": lambda tensor, twice: tensor.copy_(twice),
    ".data =": lambda tensor, twice: setattr(tensor, "data", twice),
}
found = {}
for layout in ("dense", "sparse"):
    for name, write in WRITES.items():
        tensor, twice = torch.eye(2), 2.0 * torch.eye(2)
        if layout == "sparse":
            tensor, twice = tensor.to_sparse(), twice.to_sparse()
        write(tensor, twice)
        value = tensor.to_dense() if layout == "sparse" else tensor
        found[layout, name] = value.sum().item() == 4.0
for name in WRITES:
    print(f"{name:16} changes a dense tensor: {found['dense', name]}, a sparse one: {found['sparse', name]}")
assert all(found["dense", name] for name in WRITES)
assert [name for name in WRITES if found["sparse", name]] == ["mul_", "copy_", ".data ="]
PYTHON
