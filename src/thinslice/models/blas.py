"""Keeps BLAS from taking the cores of a network that runs."""

from threading import Lock

from threadpoolctl import threadpool_limits


class _OneBlasThread:
    """While a network runs, BLAS computes in one thread; afterwards in as many as before.

    Its threads wait for work in a busy loop and take the network's cores: with two of them a scan takes a tenth to a
    quarter longer (LOG.md). The setting is the whole process's, so the last of several users puts it back.
    """

    def __init__(self) -> None:
        self.lock, self.users = Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.limits = threadpool_limits(1, "blas")
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            # Counted: the first of two users to leave would give the threads back while the other's network still runs.
            if self.users == 0:
                self.limits.restore_original_limits()


one_blas_thread = _OneBlasThread()
"""For ``with``: one for the whole process."""
