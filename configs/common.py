"""Every field of an experiment with its default. The other files change a few."""

import ml_collections

VARIANTS = ("fedavg", "cepam_gaussian", "cepam_laplace")


def defaults() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.rounds = 80
    c.eval_every = 5  # rounds between evaluations, which are also the checkpoints
    c.num_clients = 30
    c.clients_per_round = 0  # a random subset of this size takes part; 0: all
    c.clients_per_chunk = 0  # clients trained at the same time; 0: one on a CPU, all elsewhere
    c.model = "mlp"  # linear, mlp, cnn2, cnn3
    c.aggregator = "mean"  # mean, examples

    c.data = ml_collections.ConfigDict()
    c.data.name = "mnist"  # digits, mnist, fashion_mnist, cifar10
    c.data.dir = ""  # where TFDS keeps data; "": $TFDS_DATA_DIR or ~/tensorflow_datasets

    c.partition = ml_collections.ConfigDict()
    c.partition.kind = "iid"  # iid, dirichlet, shards, quantity
    c.partition.alpha = 0.3  # of dirichlet
    c.partition.shards_per_client = 2  # of shards
    c.partition.exponent = 1.0  # of quantity: size of the k-th client ~ k^-exponent

    c.local = ml_collections.ConfigDict()
    c.local.update = "weights"  # weights: difference after local SGD; gradient: one mean gradient
    c.local.steps = 15
    c.local.batch_size = 32
    c.local.learning_rate = 0.1
    c.local.momentum = 0.5
    c.local.sampling = "replacement"  # replacement, shuffle
    c.local.augment = "none"  # none, crop_flip

    c.server = ml_collections.ConfigDict()
    c.server.optimizer = "sgd"  # sgd, adam, yogi, adagrad
    c.server.learning_rate = 1.0
    c.server.momentum = 0.0  # of sgd

    c.mechanism = ml_collections.ConfigDict()
    c.mechanism.name = "lrsuq"  # identity, lrsuq
    c.mechanism.target = "gaussian"  # law of the error: gaussian, laplace
    c.mechanism.lattice = "Z1"  # Z1, Z2, Z3
    c.mechanism.gamma = 100.0  # clip_norm / sigma; laplace: clip_norm / b
    c.mechanism.gamma_per_client = ()  # one value per client in place of gamma
    c.mechanism.clip = "l2"  # norm that is bounded: none, l2, l1
    c.mechanism.clip_norm = 1.0  # in units of the update
    c.mechanism.coding = "laplace"  # law assumed when bits are counted: gaussian, laplace

    c.seeds = ml_collections.ConfigDict()
    c.seeds.partition = 0
    c.seeds.model = 0
    c.seeds.training = 0  # batches, participation, dropout, private noise
    c.seeds.shared = 0  # dithers and layers
    return c


def with_variant(c: ml_collections.ConfigDict, variant: str, l1_clip_norm: float, laplace_gamma: float):
    """Turns the defaults of a family into one of its variants."""
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; it must be one of {', '.join(VARIANTS)}")
    if variant == "fedavg":
        c.mechanism.name = "identity"
        c.mechanism.clip = "none"
    if variant == "cepam_laplace":
        c.mechanism.target = "laplace"
        c.mechanism.clip = "l1"
        c.mechanism.clip_norm = l1_clip_norm
        c.mechanism.gamma = laplace_gamma
    return c
