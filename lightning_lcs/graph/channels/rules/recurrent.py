"""Rules for recurrent layers and cells."""

from __future__ import annotations

from lightning_lcs.graph.channels.dims import Dim, concatenated
from lightning_lcs.graph.channels.rules.call import Call, Dims
from lightning_lcs.graph.channels.rules.registry import rule

# Cells of one layer share the hidden size, and by this rule the kept channels: the states are one tensor.
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*_GATES, in_files=True)
def recurrent(call: Call) -> list[Dims] | None:
    """A recurrent layer. Each weight stacks the gates, and each gate keeps the first hidden channels.

    The arguments are ``(input, state, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first)``,
    where the weights of all layers are in one list. The results are the output and the states. Layers with a
    projection, whose output and whose cell state differ in size, are not covered.
    """
    directions = 2 if call.arg(7, "bidirectional") else 1
    per_cell = 4 if call.arg(3, "has_biases") else 2
    if len(call.arg(2, "params")) != call.arg(4, "num_layers") * directions * per_cell:
        return None  # each cell has the weight of a projection, too
    x = call.dims(call.arg(0, "input"))
    states = call.arg(1, "hx")
    states = states if isinstance(states, (list, tuple)) else [states]
    weights = [call.dims(weight) for weight in call.arg(2, "params")]
    cells = [weights[start : start + per_cell] for start in range(0, len(weights), per_cell)]
    hidden = call.structure.fresh(call.shape(states[0])[-1])
    into: Dim = x[-1]
    for layer in range(0, len(cells), directions):
        for input_weight, hidden_weight, *biases in cells[layer : layer + directions]:
            stacked = _gates(call, hidden)
            for dim in (input_weight[0], hidden_weight[0], *(bias[0] for bias in biases)):
                call.unify(dim, stacked)
            call.unify(input_weight[1], into)
            call.unify(hidden_weight[1], hidden)
        into = concatenated([call.structure.resolve(hidden)] * directions)
    for state in states:
        call.unify(call.dims(state)[-1], hidden)
    hidden = call.structure.resolve(hidden)
    after: list[Dims] = [[*call.dims(state)[:-1], hidden] for state in states]
    return [[*x[:-1], concatenated([hidden] * directions)], *after]


@rule(*(f"{name}_cell" for name in _GATES), in_files=True)
def cell(call: Call) -> Dims | list[Dims]:
    """One step of a cell, with arguments ``(input, state, input weight, hidden weight, biases)``.

    An LSTM has two states and returns both.
    """
    states = call.arg(1, "hx")
    states = states if isinstance(states, (list, tuple)) else [states]
    hidden = call.dims(states[0])[-1]
    input_weight, hidden_weight = call.dims(call.arg(2, "w_ih")), call.dims(call.arg(3, "w_hh"))
    biases = [call.dims(bias) for bias in (call.arg(4, "b_ih"), call.arg(5, "b_hh")) if bias is not None]
    stacked = _gates(call, hidden)
    for dims in (input_weight, hidden_weight, *biases):
        call.unify(dims[0], stacked)
    call.unify(input_weight[1], call.dims(call.arg(0, "input"))[-1])
    call.unify(hidden_weight[1], hidden)
    for state in states[1:]:
        call.unify(call.dims(state)[-1], hidden)
    after: list[Dims] = [[*call.dims(state)[:-1], call.structure.resolve(hidden)] for state in states]
    return after if len(after) > 1 else after[0]


def _gates(call: Call, hidden: Dim) -> Dim:
    """The dimension of a weight in which the gates are stacked."""
    count = _GATES[call.name.removesuffix("_cell")]
    gates = call.structure.fresh(count, kept_whole="gates of a recurrent layer")
    return call.structure.times(gates, hidden, call.why)
