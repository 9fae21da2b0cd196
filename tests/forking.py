"""Run emdiffuse and Snakemake as forks of one process with all imports done, so that jobs start instantly.

Snakemake runs ``emdiffuse ...`` as usual, with the real rules; the ``emdiffuse`` that its jobs find (and the
``snakemake`` beside it) passes name, arguments, folder, environment and the three standard files to the
server, and ends with the exit code of the fork.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import emdiffuse

CLIENT = """#!{python} -SEs
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    told = json.dumps([[{name!r}, *sys.argv[1:]], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(told).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(told)
    sys.exit(int(server.recv(8) or b"1"))
"""


MODULES = {"emdiffuse": "emdiffuse.cli", "snakemake": "snakemake.cli"}
"""The commands that are forked, and the module whose `main` each runs."""
ALSO = ("torch.utils.tensorboard", "snakemake.api", "snakemake.workflow", "snakemake.executors.local")
"""Modules that these import only at run time."""


@contextlib.contextmanager
def forked_commands(folder: Path) -> Iterator[dict[str, str]]:
    """Serve until the end of the context; yield the environment in which the two commands are forked."""
    address = folder / "socket"
    places = [folder / "bin", Path(sys.executable).parent]
    places[0].mkdir(parents=True)
    for name in MODULES:
        command = places[0] / name
        command.write_text(CLIENT.format(python=sys.executable, address=str(address), name=name))
        command.chmod(0o755)
    # a separate process: this one may have threads, such as tensorstore's, which do not survive a fork
    server = subprocess.Popen([sys.executable, __file__, str(address)], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.read(1), "the server did not start"
        yield {**os.environ, "PATH": os.pathsep.join([*map(str, places), os.environ["PATH"]])}
    finally:
        server.kill()
        server.wait()


def _serve(address: str) -> None:
    """Load everything, then fork a process for each command."""
    for module in pkgutil.walk_packages(emdiffuse.__path__, "emdiffuse."):
        if not module.name.startswith(("emdiffuse.napari", "emdiffuse.cli.__main__")):
            importlib.import_module(module.name)
    for name in (*MODULES.values(), *ALSO):
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    os.write(1, b"!")
    os.close(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are not waited for
    while True:
        try:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection)
            connection.close()
        except OSError:
            os._exit(1)


def _answer(connection: socket.socket) -> None:
    """Run a command in a separate process, and send its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(connection, 4, 3)
    told = b""
    while len(told) < int.from_bytes(size, "big"):
        told += connection.recv(2**16)
    arguments, folder, environment = json.loads(told)
    worker = os.fork()
    if worker == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = arguments
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        os._exit(_run())
    _, status = os.waitpid(worker, 0)
    with contextlib.suppress(OSError):
        connection.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())
    os._exit(0)


def _run() -> int:
    import traceback

    main = importlib.import_module(MODULES[sys.argv[0]]).main
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    _serve(sys.argv[1])
