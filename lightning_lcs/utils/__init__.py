"""Files, timing, and what the packages' own interfaces share: options and lazy names."""
