"""Names of the keys that a round draws for itself: each is folded in where a client's number is otherwise.

One list, so that no two are the same: randomness that is used twice protects neither.
"""

import numpy as np

# In the order in which they came; a number that is taken is part of what runs are reproduced by.
PARTICIPANTS, DOWNLINK, PUBLIC, LIARS, COUNT, SERVER_NOISE, LOST, COMMON = (
    np.uint32(2**32 - 1 - place) for place in range(8)
)
