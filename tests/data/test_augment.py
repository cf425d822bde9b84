import jax
import numpy as np

from cepam_jax.data.augment import crop_and_flip


def test_every_result_is_a_shifted_or_mirrored_image():
    images = jax.random.uniform(jax.random.key(0), (64, 6, 6, 2)) + 1
    out = np.asarray(crop_and_flip(jax.random.key(1), images, pad=2))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for before, after in zip(padded, out, strict=True):
        found = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (1, -1)
            if np.array_equal(before[top : top + 6, left : left + 6][:, ::flip], after)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 25  # of 50; 64 draws leave 36 distinct on average
