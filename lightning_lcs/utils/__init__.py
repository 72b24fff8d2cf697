"""What all parts of the package share: files, timing, warnings, optional packages, lazy names."""
