"""The keys that a round draws for itself are not one another's, nor a client's."""

from cepam_jax.federated import round_keys


def test_no_two_are_the_same():
    found = [value for name, value in vars(round_keys).items() if name.isupper()]
    assert len(found) == len(set(map(int, found))) == 8
    assert min(map(int, found)) > 2**31  # clients are numbered below
