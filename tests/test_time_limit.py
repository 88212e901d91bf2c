"""A run of the tests with a limit of minutes."""

import subprocess
from pathlib import Path

import pytest
from support import environment

SUITE = Path(__file__).parent


@pytest.mark.parametrize(("minutes", "outcome"), [("0", "skipped"), ("10", "passed")])
def test_tests_whose_turn_comes_after_the_limit_are_skipped_and_say_so(minutes: str, outcome: str) -> None:
    command = [
        "python",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-rs",
        "--minutes",
        minutes,
        SUITE / "test_sizes.py",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SUITE.parent, env=environment())
    assert done.returncode == 0 and outcome in done.stdout.splitlines()[-1], done.stdout + done.stderr
    assert ("its turn came after" in done.stdout) == (outcome == "skipped")
