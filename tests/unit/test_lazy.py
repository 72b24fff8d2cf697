"""Folders hand on their public names lazily: a name imports its module, and nothing else does."""

import importlib
import subprocess
import sys

import pytest

PACKAGES = ("control", "data", "export", "loggers", "reporting")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there_and_an_unknown_one_is_named(package):
    module = importlib.import_module(f"lightning_lcs.{package}")
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
        assert name in dir(module)
    with pytest.raises(AttributeError, match=f"module 'lightning_lcs.{package}' has no attribute 'nothing'; it has"):
        _ = module.nothing


def test_a_folder_imports_none_of_its_modules():
    code = "import sys\n" + "\n".join(f"import lightning_lcs.{package}" for package in PACKAGES)
    code += "\nassert 'torch' not in sys.modules and 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
