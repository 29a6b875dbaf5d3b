"""Processes of a run as threads, which add up tensors as their collectives do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def on_threads(count, work):
    """What ``work(rank, reduce)`` returns or raises on each of several threads.

    ``reduce`` returns the sum of a tensor over all of them, for which they wait. Tensors of other sizes than the
    others' are refused.
    """
    barrier, sent = threading.Barrier(count, timeout=60), [None] * count

    def reduce_of(rank):
        def reduce(tensor):
            barrier.wait()  # until all have read the last sums
            sent[rank] = tensor
            barrier.wait()
            assert len({each.shape for each in sent}) == 1
            return torch.stack(sent).sum(0)

        return reduce

    with ThreadPoolExecutor(count) as pool:
        jobs = [pool.submit(work, rank, reduce_of(rank)) for rank in range(count)]
        return [job.exception() or job.result() for job in jobs]
