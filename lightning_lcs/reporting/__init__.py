"""What users see of the accuracy-efficiency curve: data, tables, files, plots, W&B."""
