"""`python -m runners.matrix.child ARGUMENTS`: the command `superbit ARGUMENTS` as a child of a stage's process.

It ends when its parent has ended, however that ended: by SIGTERM, on which a training saves its state.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time


def _end_with_the_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_parent, args=(int(sys.argv.pop(1)),), daemon=True).start()
    runpy.run_module("superbit", run_name="__main__", alter_sys=True)
