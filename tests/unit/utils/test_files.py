"""Files and folders are written whole or not at all."""

import pytest

from lightning_lcs.utils.files import replacing, replacing_folder, write_text


def half(writing, name):
    with writing as scratch:
        (scratch / name if name else scratch).write_text("half")
        raise RuntimeError("the disk is full")


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path):
    write_text("old", tmp_path / "a.txt")
    with pytest.raises(RuntimeError, match="disk"):
        half(replacing(tmp_path / "a.txt"), None)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_all_files_of_a_folder_or_none(tmp_path):
    with pytest.raises(RuntimeError, match="disk"):
        half(replacing_folder(tmp_path / "new"), "a.txt")
    assert not list(tmp_path.iterdir())
    with replacing_folder(tmp_path / "new") as scratch:
        (scratch / "a.txt").write_text("whole")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
