"""The tests' own programs (``warm``), whose server must outlive whatever a test does to one of them."""

import socket
import subprocess
from pathlib import Path

from support import warm_programs


def test_a_program_that_is_killed_before_it_has_asked_for_anything_does_not_end_the_others() -> None:
    folder = Path(warm_programs())
    for said in (b"", b"+", b'+{"program": "py'):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(folder.with_name("socket")))
            connection.sendall(said)
    assert subprocess.run([f"{folder}/python", "-c", "print(1)"], capture_output=True, text=True).stdout == "1\n"
