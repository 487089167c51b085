"""The few system calls between fork and exec of an embedded server, as a script of its own.

``python -I -S launcher.py OPTIONS -- PROGRAM ARGUMENT…`` gives up root, asks the kernel for a signal at the death of
the parent and becomes PROGRAM. It replaces ``preexec_fn``, which runs Python in a forked copy of a threaded process
and can deadlock there. Standard library only: it runs without site-packages.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(argv: list[str]) -> None:
    """Never returns: the process becomes the program, or exits with a message."""
    parser = argparse.ArgumentParser(prog="launcher")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--death-signal", type=int, required=True)
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded while its file can still be read
    if options.uid is not None:
        try:
            os.setgroups([])
            os.setgid(options.gid)
            os.setuid(options.uid)
        except OSError as error:
            sys.exit(f"can't become user {options.uid}: {error.strerror}")
    # After setuid: a change of credentials clears the death signal, an exec keeps it (prctl(2)).
    if libc is not None and libc.prctl(PR_SET_PDEATHSIG, options.death_signal, 0, 0, 0) != 0:
        sys.exit("prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != options.parent:  # it died before the kernel knew whom to tell
        sys.exit("the parent is gone")
    os.umask(0o077)
    try:
        os.execv(options.command[0], options.command)  # noqa: S606 - that is what a launcher is for
    except OSError as error:
        sys.exit(f"{options.command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
