#!/usr/bin/env bash
# torch 2.14.1: a cycle through register_post_accumulate_grad_hook is never collected.
#
# Guess: an object that holds a leaf tensor, whose hook refers to the object, is a cycle that Python's garbage collector
# finds, as it does with Tensor.register_hook on a leaf and with hooks of modules. Seen: with a post-accumulate hook the
# object and its tensors stay alive for good; with register_hook they are collected. A hook must not refer to what holds
# its tensor.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import gc
import weakref

import torch


class Holder:
    def __init__(self, register):
        self.leaf = torch.ones(1000, requires_grad=True)
        getattr(self.leaf, register)(lambda *_: self.note())

    def note(self):
        return None


def alive_after_collection(register):
    held = [weakref.ref(Holder(register)) for _ in range(10)]
    gc.collect()
    return sum(reference() is not None for reference in held)


post, plain = alive_after_collection("register_post_accumulate_grad_hook"), alive_after_collection("register_hook")
print("torch", torch.__version__)
print("holders alive after gc.collect(), of 10: post-accumulate hook", post, "| register_hook", plain)
assert torch.__version__.split("+")[0] == "2.14.1"
assert (post, plain) == (10, 0)
PYTHON
