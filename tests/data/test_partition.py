import numpy as np
import pytest

from cepam_jax.data import partition
from cepam_jax.errors import ConfigError
from cepam_jax.run.config import defaults

LABELS = np.random.default_rng(0).integers(0, 10, 5000)
OPTIONS = {
    "iid": {},
    "dirichlet": {"alpha": 0.3},
    "shards": {"shards_per_client": 2},
    "quantity": {"exponent": 1.5},
    "by_size": {},
}


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("clients", [1, 7, 30])
def test_every_example_belongs_to_exactly_one_client(kind, clients):
    split = partition.partition(LABELS, kind, clients, 3, **OPTIONS[kind])
    held = np.concatenate([split.client(k) for k in range(clients)])
    np.testing.assert_array_equal(np.sort(held), np.arange(len(LABELS)))
    assert split.indices.shape == (clients, split.counts.max())
    assert split.counts.min() >= 1


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_seed_decides(kind):
    first, same, other = (partition.partition(LABELS, kind, 10, s, **OPTIONS[kind]) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.indices, same.indices)
    assert not np.array_equal(first.client(0), other.client(0))


def spread(kind, **options):
    split = partition.partition(LABELS, kind, 20, 0, **options)
    table = partition.histogram(LABELS, split, 10)
    assert table.sum() == len(LABELS)
    return table


def test_kinds_have_the_shape_they_promise():
    assert np.ptp(spread("iid").sum(1)) <= 1
    assert (spread("shards", shards_per_client=2) > 0).sum(1).max() <= 4
    assert (spread("dirichlet", alpha=0.05) > 0).sum(1).mean() < 6
    near_iid = spread("dirichlet", alpha=1000)
    assert near_iid.min() > 0 and near_iid.max() < 2 * near_iid.mean()
    sizes = np.sort(spread("quantity", exponent=1.0).sum(1))[::-1]
    np.testing.assert_allclose(sizes / sizes[0], 1 / np.arange(1, 21), rtol=0.1)
    assert np.ptp(spread("quantity", exponent=0.0).sum(1)) <= 1


def test_by_size_cuts_in_the_order_of_sizes():
    sizes = np.random.default_rng(1).integers(3, 60, 997)
    split = partition.partition(sizes, "by_size", 7, 0)
    for k in range(6):
        assert sizes[split.client(k)].max() <= sizes[split.client(k + 1)].min()
    assert np.ptp(split.counts) <= 1
    config = defaults()
    config.partition.kind, config.num_clients = "by_size", 7
    chosen = partition.of_config(config, LABELS[:997], None, 997, sizes)
    np.testing.assert_array_equal(chosen.indices, split.indices)
    with pytest.raises(ConfigError, match="'by_size', but the data set has no sizes"):
        partition.of_config(config, LABELS, None, 5000)


def test_impossible_values_are_named():
    for kind, options in (
        ("dirichlet", {"alpha": np.inf}),
        ("dirichlet", {"alpha": "a"}),
        ("shards", {"shards_per_client": 1.5}),
        ("quantity", {"exponent": None}),
    ):
        with pytest.raises(ConfigError, match=f"config.partition.{next(iter(options))} is .*; it must be"):
            partition.partition(LABELS, kind, 5, 0, **options)
    with pytest.raises(ConfigError, match="config.num_clients is 5001; it must be .* at most 5000"):
        partition.partition(LABELS, "iid", 5001, 0)
    with pytest.raises(ConfigError, match="partition.alpha is 0"):
        partition.partition(LABELS, "dirichlet", 5, 0, alpha=0)
    with pytest.raises(ConfigError, match="partition.shards_per_client is 1000"):
        partition.partition(LABELS, "shards", 10, 0, shards_per_client=1000)
    with pytest.raises(ConfigError, match="partition.kind is 'random'; it must be one of"):
        partition.partition(LABELS, "random", 10, 0)
    with pytest.raises(ConfigError, match="clients without data"):
        partition.partition(LABELS[:20], "dirichlet", 20, 0, alpha=0.01)


@pytest.mark.parametrize("kind", ["iid", "quantity"])
def test_kinds_that_read_no_labels_need_none(kind):
    found = partition.partition(None, kind, 4, 0, examples=40, **OPTIONS[kind])
    labelled = partition.partition(np.zeros(40, int), kind, 4, 0, **OPTIONS[kind])
    assert found.counts.sum() == 40 and (found.counts == labelled.counts).all()


def test_summary_and_picture(tmp_path):
    table = spread("shards", shards_per_client=2)
    text = partition.summary(table)
    assert "20 clients, 5,000 examples: 250 to 250 a client" in text
    assert f"{(table > 0).sum(1).min()} to {(table > 0).sum(1).max()} of 10" in text
    partition.plot(table, tmp_path / "partition.png")
    assert (tmp_path / "partition.png").read_bytes().startswith(b"\x89PNG")
