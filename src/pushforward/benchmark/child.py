"""Wrapper of every process of a benchmark, which ends with its parent.

``python -m pushforward.benchmark.child MODULE ...`` runs ``python -m MODULE ...`` and kills itself when its standard
input ends, which happens in whatever way the parent ends. A fit left behind would slow down the ones that are measured.
What runs inside is the command ``pushforward`` or :mod:`pushforward.benchmark.worker`.
"""

import os
import runpy
import signal
import sys
import threading


def _end_with_input() -> None:
    # Not through sys.stdin: this thread would hold its lock while Python exits.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM if os.name != "posix" else signal.SIGKILL)


def main() -> None:
    """Run the module named by the first argument."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
