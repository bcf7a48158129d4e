"""Signs of life of whoever holds a lease, as long as a block runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def signs_of_life(lease_minutes: float, renew: Callable[[], object]) -> Iterator[None]:
    """Renew a lease three times in the time for which it lasts, beside the block.

    Args:
        lease_minutes: for which a lease lasts.
        renew: called in a thread of its own; where it fails (the database is away) the lease runs out, as it should.
    """
    done = threading.Event()

    def work() -> None:
        while not done.wait(lease_minutes * 60 / 3):
            with suppress(Exception):
                renew()

    thread = threading.Thread(target=work, name="leases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
