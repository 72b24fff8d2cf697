"""The command as a process."""

import os
import subprocess
import sys


def test_a_reader_that_has_had_enough_is_no_error():
    """As in ``lightning-lcs --help | head -1``: the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "lightning_lcs.cli", "--help"]
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
