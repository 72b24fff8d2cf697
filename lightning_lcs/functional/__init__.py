"""Pure functions of tensors and numbers. They hold no modules and no global state; random generators are arguments."""
