"""A process that does not outlive the one that started it: ``python -m pushforward.benchmark.child MODULE ...``.

It runs the module as ``python -m MODULE ...`` would, and dies when its standard input ends, as it does however the
other process ends. Fits that nobody waits for would take the time of those that are measured.
"""

import os
import runpy
import signal
import sys
import threading


def _end_with_input() -> None:
    # Not through sys.stdin, whose lock a thread that waits here would hold while Python exits.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM if os.name != "posix" else signal.SIGKILL)


def main() -> None:
    """Run the module that the arguments name."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
