"""Random words as functions of (seed, purpose, number): no generator has a state.

They are raw 64-bit words of numpy's Philox, a counter-based generator (Salmon et al. 2011) whose
stream NumPy guarantees; the methods of numpy's Generator carry no such promise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def words(seed: int, purpose: bytes, number: int, count: int) -> NDArray[np.uint64]:
    """``count`` random words of one purpose (at most eight bytes) for one epoch or step.

    The purpose is the second half of Philox's 128-bit key, so that each has a stream of its own.
    The number is the top word of the 256-bit counter: 2**192 blocks before two streams could meet.
    """
    key = np.array([seed, int.from_bytes(purpose)], np.uint64)
    counter = np.array([0, 0, 0, number], np.uint64)
    return np.random.Philox(counter=counter, key=key).random_raw(count)
