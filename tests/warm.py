"""Programs of the virtual environment that start in milliseconds: forks of one process that has imported all libraries.

A real start of `sfd`, `dvc` or a stage takes seconds, which go into imports. Here, ``programs`` makes a folder for PATH with `python`, `sfd`,
`dvc` and `torchrun`. Each passes its arguments, folder, environment and streams to one server for all processes of a test run, which forks;
it passes on signals, and ends as the fork ends. Modules of `sfd` are imported by each fork from its own PYTHONPATH.
As a script, this file is the server.
"""

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src"
PROGRAMS = "SFD_TEST_PROGRAMS"
"""The environment variable that names the folder of programs to all processes of a test run."""
NAMES = ("python", "sfd", "dvc", "torchrun")
LAZY = tuple(
    """alembic.command datasets diffusers.models.autoencoders.autoencoder_kl dvc.api dvc.cli.parser git grimp
    matplotlib.backends.backend_agg matplotlib.figure mlflow.pyfunc mlflow.store.db.utils
    mlflow.store.tracking.sqlalchemy_store networkx optuna.importance optuna.samplers optuna.storages
    scipy.stats sklearn sklearn.datasets sklearn.decomposition sqlalchemy.dialects.sqlite tabulate timm
    torch.distributed.run torch_fidelity""".split()
)
"""Modules that functions import, not modules."""
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
arguments = sys.argv[1:]
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
request = {{"program": os.path.basename(sys.argv[0]), "path": {folder!r} + "/python", "arguments": arguments}}
request |= {{"folder": os.getcwd(), "environment": dict(os.environ)}}
request["ignores_sigint"] = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
fork, early = [], []
def pass_on(number, frame):
    if fork: os.kill(fork[0], number)
    else: early.append(number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN: signal.signal(number, pass_on)
socket.send_fds(connection, [b"+"], [0, 1, 2])
connection.sendall(json.dumps(request).encode() + b"\\n")
for line in connection.makefile():
    if not fork:
        fork.append(int(line))
        for number in early: os.kill(fork[0], number)
    else:
        status = int(line)
        if status < 0:
            if -status != signal.SIGKILL: signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        os._exit(status)
os._exit(70)
"""


class Warm:
    """The server and the folder of its programs; ends with the process that made it."""

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "bin"
        self.programs.mkdir(parents=True)
        address = folder / "socket"
        for name in NAMES:
            program = self.programs / name
            program.write_text(CLIENT.format(python=sys.executable, address=str(address), folder=str(self.programs)))
            program.chmod(0o755)
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment = kept | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1"}
        self.log = (folder / "log").open("wb")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(address))
        listener.listen(128)
        with listener:
            self.server = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=self.log,
                stderr=self.log,
                env=environment,
                pass_fds=[listener.fileno()],
            )

    def stop(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        try:
            self.server.wait(30)
        except subprocess.TimeoutExpired:  # a program that a failed test left behind still holds the pipe
            self.server.kill()
            self.server.wait()
        self.log.close()


class Request:
    """What one program asks for, and the three streams that it has sent along.

    Raises:
        OSError, ValueError: it was killed before it had said what it asks for.
    """

    def __init__(self, connection: socket.socket) -> None:
        _, self.streams, _, _ = socket.recv_fds(connection, 1, 3)
        try:
            with connection.makefile("rb") as lines:
                self.asked: dict[str, Any] = json.loads(lines.readline())
        except (OSError, ValueError):
            self.close()
            raise

    def close(self) -> None:
        """Closes this process's copies of the streams."""
        for stream in self.streams:
            os.close(stream)

    def run(self) -> None:
        """In the fork: becomes the program, as a new interpreter would."""
        interpreter = sys.executable
        faulthandler.enable()  # a crash says where
        sys.dont_write_bytecode = False  # each project is compiled once, as a user's is
        for number, stream in enumerate(self.streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(self.asked["folder"])
        os.environ.clear()
        os.environ.update(self.asked["environment"])
        signal.signal(signal.SIGINT, signal.SIG_IGN if self.asked["ignores_sigint"] else signal.default_int_handler)
        sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        name, arguments = self.asked["program"], self.asked["arguments"]
        sys.executable = str(Path(self.asked["path"]).with_name("python"))  # what it starts is forked, too
        if name != "python":
            arguments = [str(Path(interpreter).with_name(name)), *arguments]
        options = [option for option in arguments[:1] if option in ("-P", "-u")]
        arguments = arguments[len(options) :]
        if "-u" in options:
            sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        if arguments[:1] == ["-c"]:
            sys.argv = ["-c", *arguments[2:]]
            sys.path.insert(0, "")
            main = types.ModuleType("__main__")
            sys.modules["__main__"] = main
            exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
        elif arguments[:1] == ["-m"]:
            sys.argv = arguments[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments and not arguments[0].startswith("-"):
            sys.argv = arguments
            if "-P" not in options:
                sys.path.insert(0, str(Path(arguments[0]).parent.absolute()))
            runpy.run_path(arguments[0], run_name="__main__")
        else:
            os.execv(interpreter, [interpreter, *arguments])


def import_everything() -> None:
    """All libraries that modules of `sfd` import, but `sfd` itself."""
    sys.path[0] = str(SOURCE)  # instead of this file's folder
    package = importlib.import_module("sfd")
    for module in pkgutil.walk_packages(package.__path__, "sfd."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except (Exception, SystemExit) as error:
                print(f"{module.name} is imported by each fork: {error}", file=sys.stderr)
    for name in LAZY:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "sfd"]:
        del sys.modules[name]
    sys.path.remove(str(SOURCE))
    sys.path_importer_cache.clear()
    gc.collect()
    gc.freeze()


def end(status: int) -> None:
    """What an interpreter does at its end, but for tearing down its modules."""
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(status)


def become(request: Request) -> None:
    """Runs the program of a request and ends this process, which is a fork."""
    status = 0
    try:
        request.run()
    except SystemExit as ending:
        if isinstance(ending.code, int | None):
            status = ending.code or 0
        else:
            print(ending.code, file=sys.stderr)
            status = 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    end(status & 255)


def tell(connection: socket.socket, number: int) -> None:
    """Sends a program a number, unless it has been killed."""
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{number}\n".encode())


def serve(listener: socket.socket) -> None:
    """Forks for each request until the maker of this process is gone; a program that is killed takes its fork along."""
    selector, forks = selectors.DefaultSelector(), dict[int, tuple[socket.socket, int]]()
    selector.register(0, selectors.EVENT_READ, "maker")
    selector.register(listener, selectors.EVENT_READ, "program")
    is_warm = False
    while True:
        for key, _ in selector.select():
            if key.data == "maker":
                for _, pid in forks.values():
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            elif key.data == "program":
                connection, _ = listener.accept()
                if not is_warm:
                    import_everything()
                    is_warm = True
                try:
                    request = Request(connection)
                except (OSError, ValueError):
                    connection.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    listener.close()
                    connection.close()
                    for other, _ in forks.values():
                        other.close()
                    become(request)
                request.close()
                watch = os.pidfd_open(pid)
                forks[watch] = connection, pid
                selector.register(watch, selectors.EVENT_READ, watch)
                selector.register(connection, selectors.EVENT_READ, (pid, watch))
                tell(connection, pid)
            elif isinstance(key.data, tuple):  # the program has been killed
                os.kill(key.data[0], signal.SIGKILL)
                selector.unregister(key.fileobj)
            elif key.data in forks:
                connection, pid = forks.pop(key.data)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                selector.unregister(key.data)
                os.close(key.data)
                if connection in {each.fileobj for each in selector.get_map().values()}:
                    selector.unregister(connection)
                tell(connection, status)
                connection.close()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
