#!/usr/bin/env bash
# torch 2.14.1: torch.inference_mode(False) inside torch.no_grad() turns gradients on.
#
# Guess: leaving inference mode for a block leaves the gradient mode as it is, so that a block inside no_grad() stays
# without gradients. Seen: the block records gradients, and an in-place write to a parameter is an error there. With the
# two the other way round, no_grad() inside inference_mode(False), all is as expected.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch

weight = torch.nn.Parameter(torch.ones(2))
with torch.no_grad():
    weight.add_(1.0)
    with torch.inference_mode(False):
        inside = torch.is_grad_enabled()
        try:
            weight.add_(1.0)
            written = "written"
        except RuntimeError as error:
            written = str(error)
    after = torch.is_grad_enabled()
with torch.inference_mode(False), torch.no_grad():
    other_order = torch.is_grad_enabled()
print("torch", torch.__version__)
print("gradients in inference_mode(False) inside no_grad():", inside, "| after the block:", after)
print("in-place write to a parameter there:", written)
print("gradients in no_grad() inside inference_mode(False):", other_order)
assert torch.__version__.split("+")[0] == "2.14.1"
assert (inside, after, other_order) == (True, False, False)
assert written == "a leaf Variable that requires grad is being used in an in-place operation."
PYTHON
