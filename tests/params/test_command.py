"""`sfd params` as a user runs it."""

import subprocess
import sys
from pathlib import Path

import yaml
from support import REPOSITORY

from sfd.params import describe_params, load_params, parse_params

SFD = Path(sys.executable).with_name("sfd")


def test_the_command_prints_the_resolved_parameters_or_one_line_that_says_what_is_wrong(tmp_path: Path) -> None:
    good = subprocess.run([SFD, "params", "--file", REPOSITORY / "params.yaml"], capture_output=True, text=True)
    assert good.returncode == 0
    assert parse_params(yaml.safe_load(good.stdout)) == load_params(REPOSITORY / "params.yaml")
    file = tmp_path / "wrong.yaml"
    file.write_text((REPOSITORY / "params.yaml").read_text().replace("  tau: 0.3", "  tua: 0.3"))
    bad = subprocess.run([SFD, "params", "--file", file], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith(f"error: {file}: unknown key `schedule.tua`") and bad.stderr.count("\n") == 1


def test_the_command_describes_all_options() -> None:
    run = subprocess.run([SFD, "params", "--describe"], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.strip() == describe_params()
