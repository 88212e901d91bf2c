"""A real PostgreSQL server on its own port, from the system's packages (Debian: ``apt-get install postgresql``)."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import wait_until

from sfd.tuning.storage import expand

PASSWORD = "s3cret@word"
VARIABLE = "SFD_TEST_STORAGE_PASSWORD"


@contextmanager
def postgres_server() -> Iterator[str]:
    """The address of an empty database that lives as long as the block; skips the test where there is no PostgreSQL.

    The address names a variable of the environment, which is set for the block.
    """
    psycopg2 = pytest.importorskip("psycopg2", reason="the driver psycopg2 is not installed")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not programs:
        pytest.skip("PostgreSQL is not installed (/usr/lib/postgresql/*/bin/initdb)")
    binaries = programs[-1].parent
    # The server refuses to run as root. Not in tmp_path, whose parents only their owner may enter.
    user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="sfd-postgres-") as name:
        home = Path(name)
        (home / "password").write_text(PASSWORD)
        if user:
            shutil.chown(home, "postgres", "postgres")
            shutil.chown(home / "password", "postgres", "postgres")
        initdb = [binaries / "initdb", "-D", home / "data", "-U", "sfd", "--auth=scram-sha-256", "--no-sync"]
        initdb += [f"--pwfile={home / 'password'}", "--no-locale", "--encoding=UTF8"]
        subprocess.run(initdb, check=True, cwd=home, stdout=subprocess.DEVNULL, **user)
        command = [binaries / "postgres", "-D", home / "data", "-F", "-h", "127.0.0.1", "-p", str(port), "-k", home]
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(command, cwd=home, stdout=log, stderr=log, start_new_session=True, **user)
        url = f"postgresql://sfd:${{{VARIABLE}}}@127.0.0.1:{port}/postgres"

        def answers() -> bool:
            try:
                psycopg2.connect(expand(url), connect_timeout=2).close()
            except psycopg2.OperationalError:
                return False
            return True

        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(VARIABLE, PASSWORD)
                wait_until(answers, 20)
                yield url
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown
            server.wait(20)
