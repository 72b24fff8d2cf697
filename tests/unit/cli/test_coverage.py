"""``lightning-lcs coverage``, as it is typed."""

import re

import pytest

from lightning_lcs.cli.main import main


def test_a_row_for_each_network_and_a_sentence_for_each_that_fails(capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["coverage", "test_byobnet", "resnet_of_nobody", "--image-size", "32", "--whole"])
    printed = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in printed if line.strip().startswith("test_byobnet"))
    assert (row[1], row[5]) == ("32", "bitwise")
    assert 0.25 < float(row[2]) < 0.5
    assert 0.2 < float(row[3]) < 0.5
    assert any(re.match(r"test_byobnet: \d+ of \d+ parameters and buffers are sliced", line) for line in printed)
    assert any("timm has no network 'resnet_of_nobody'" in line for line in printed)


def test_a_width_that_cuts_nothing_is_refused(capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["coverage", "test_byobnet", "--width", "1"])
    assert capsys.readouterr().err.startswith("lightning-lcs: --width is 1, and has to be between 0 and 1")
