"""Pure functions on tensors and numbers: no modules, no global state, random generators passed in."""
