"""A process that has imported torch and forks itself for every command: a script starts at once.

That makes room for killing many of them. Commands come as JSON lines on stdin; the process id of
each goes out, and its exit code (or minus the signal that ended it) when it is asked for.
"""

import json
import os
import resource
import runpy
import signal
import sys

# All modules that the scripts need:
import collect  # noqa: F401
import hamming.figures
import hamming.pictures  # noqa: F401
import myautoencoder.autoencoder  # noqa: F401
import search  # noqa: F401
import train  # noqa: F401

os.fsync = lambda _: None  # as in conftest.py
ANSWERS = os.fdopen(os.dup(1), "w")  # the standard output belongs to the scripts


def answer(value):
    print(value, file=ANSWERS, flush=True)


def child(order):
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    if order["limit"] is not None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], hard))
    # A shell in the background leaves it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exec(order["prepare"], {})  # a test's own lines, to save more often than people need
    sys.argv = order["command"]
    code = 0
    try:
        runpy.run_path(order["command"][0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        answer(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]))
    elif pid := os.fork():
        answer(pid)
    else:
        sys.stdin.close()
        child(order)
