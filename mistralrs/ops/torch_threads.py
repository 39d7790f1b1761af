"""How many threads torch uses in one thread of this process. The caller's other threads keep what they have."""

from __future__ import annotations

import threading

import torch

_lock = threading.Lock()


def limit_torch_here(threads: int) -> None:
    """Lets torch's operations use ``threads`` threads when the calling thread runs them: one that is new to torch.

    ``torch.set_num_threads`` has two effects: the calling thread takes the number over, and so does every thread that
    comes to torch later. A second call from another thread undoes the latter.
    """
    with _lock:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        restorer = threading.Thread(target=torch.set_num_threads, args=(before,), name="mistralrs-torch-threads")
        restorer.start()
        restorer.join()
