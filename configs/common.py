"""Every field of an experiment with its default. The other files change a few."""

import ml_collections

# What each variant changes, by field.
VARIANTS = {
    "fedavg": {"mechanism.name": "identity", "mechanism.clip": "none"},
    "cepam_gaussian": {},
    "cepam_laplace": {"mechanism.target": "laplace", "mechanism.clip": "l1"},
    "split": {"mechanism.name": "split"},
    "sdq": {"mechanism.name": "sdq", "mechanism.clip": "none", "mechanism.rate": "bits"},
    "noise_gaussian": {"mechanism.name": "noise"},
    "noise_laplace": {"mechanism.name": "noise", "mechanism.target": "laplace", "mechanism.clip": "l1"},
    "noise_gaussian_sdq": {"mechanism.name": "noise_sdq"},
    "noise_laplace_sdq": {
        "mechanism.name": "noise_sdq",
        "mechanism.target": "laplace",
        "mechanism.clip": "l1",
    },
    "noise_gaussian_rounding": {"mechanism.name": "noise_rounding"},
    "jopeq": {"mechanism.name": "jopeq"},
    "clipped": {"mechanism.name": "clipped", "mechanism.clip": "none"},
    "binary": {"mechanism.name": "binary", "mechanism.clip": "none"},
    "k_level": {"mechanism.name": "k_level", "mechanism.clip": "none"},
    "rotated_k_level": {
        "mechanism.name": "k_level",
        "mechanism.clip": "none",
        "mechanism.rotate": True,
    },
    "qsgd": {"mechanism.name": "qsgd", "mechanism.clip": "none", "mechanism.levels": 64},
    "sketched": {
        "mechanism.name": "k_level",
        "mechanism.clip": "none",
        "mechanism.rotate": True,
        "mechanism.sparsify": "mask",
    },
    "top_k": {
        "mechanism.name": "identity",
        "mechanism.clip": "none",
        "mechanism.sparsify": "top_k",
        "mechanism.fraction": 0.05,
        "mechanism.error_feedback": True,
    },
}


def defaults() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.rounds = 80
    c.eval_every = 5  # rounds between evaluations, which are also the checkpoints
    c.num_clients = 30
    c.clients_per_round = 0  # a random subset of this size takes part; 0: all
    c.clients_per_chunk = 0  # clients trained at the same time on a device; 0: one on a CPU, all elsewhere
    c.devices = 0  # a round's clients are spread over so many devices; 0: all
    c.model = "mlp"  # linear, mlp, cnn2, cnn3
    c.aggregator = "mean"  # mean, examples, inverse_error
    c.wire = False  # pack every message into bytes and unpack it again; report both figures

    c.data = ml_collections.ConfigDict()
    c.data.name = "mnist"  # digits, mnist, fashion_mnist, cifar10
    c.data.dir = ""  # where TFDS keeps data; "": $TFDS_DATA_DIR or ~/tensorflow_datasets

    c.partition = ml_collections.ConfigDict()
    c.partition.kind = "iid"  # iid, dirichlet, shards, quantity
    c.partition.alpha = 0.3  # of dirichlet
    c.partition.shards_per_client = 2  # of shards
    c.partition.exponent = 1.0  # of quantity: size of the k-th client ~ k^-exponent

    c.local = ml_collections.ConfigDict()
    c.local.update_kind = "weights"  # weights: difference after local SGD; gradient: one mean gradient
    c.local.steps = 15
    c.local.batch_size = 32
    c.local.learning_rate = 0.1
    c.local.momentum = 0.5
    c.local.sampling = "replacement"  # replacement, shuffle
    c.local.augment = "none"  # none, crop_flip
    c.local.steps_by_size = False  # fewer steps for clients with fewer examples
    c.local.proximal = 0.0  # FedProx's mu
    c.local.example_clip = 0.0  # L2 norm of one example's gradient; 0: off (then privacy is client-level)
    c.local.normalize = False  # FedNova: updates divided by the weight of the client's steps

    c.server = ml_collections.ConfigDict()
    c.server.optimizer = "sgd"  # sgd, adam, yogi, adagrad
    c.server.learning_rate = 1.0
    c.server.momentum = 0.0  # of sgd

    c.mechanism = ml_collections.ConfigDict()
    # identity, lrsuq, split, sdq, noise, noise_sdq, noise_rounding, jopeq, clipped, binary, k_level, qsgd
    c.mechanism.name = "lrsuq"
    c.mechanism.target = "gaussian"  # law of the error or noise: gaussian, laplace
    c.mechanism.lattice = "Z1"  # Z1, Z2, Z3, A2, D4, E8
    c.mechanism.share = 0.5  # of split: part of the error's variance that is private
    c.mechanism.gamma = 100.0  # clip_norm / sigma; laplace: clip_norm / b
    c.mechanism.step = 0.005  # scale of the lattice of sdq, rounding and jopeq, in units of the update
    c.mechanism.rate = "step"  # what sets the scale of sdq: step, sigma (by gamma), bits
    c.mechanism.bits = 4  # bits per coordinate of clipped, and of sdq with rate=bits
    c.mechanism.levels = 16  # of k_level and qsgd
    c.mechanism.rounding = "stochastic"  # of clipped: stochastic, deterministic
    c.mechanism.threshold = "mse"  # of clipped: mse, kl, max, percentile
    c.mechanism.granularity = "tensor"  # of clipped: model, tensor, channel
    c.mechanism.clip = "l2"  # norm that is bounded: none, l2, l1
    c.mechanism.clip_norm = 1.0  # in units of the update
    c.mechanism.rotate = False  # random rotation before quantization
    c.mechanism.sparsify = "none"  # none, mask, top_k
    c.mechanism.fraction = 0.25  # of the coordinates that a mask or top_k sends
    c.mechanism.error_feedback = False  # clients add what was lost to their next update
    c.mechanism.quantize = "updates"  # updates, weights
    # law that the entropy coder assumes: auto, mixture, laplace, gaussian; auto: where noise is added before
    # quantization the noise's law, else the mixture
    c.mechanism.coding = "auto"
    c.mechanism.scales = "own"  # the coder's scales: own (measured, sent), public (of the last aggregate)
    c.mechanism.per_client = ml_collections.ConfigDict()  # one value per client in place of the above
    c.mechanism.per_client.gamma = ()
    c.mechanism.per_client.bits = ()
    c.mechanism.per_client.fraction = ()

    c.schedule = ml_collections.ConfigDict()  # a knob times a factor that goes from 1 to `end`
    c.schedule.knob = "none"  # none, gamma, step, bits, levels, fraction
    c.schedule.kind = "linear"  # linear, exponential, cosine
    c.schedule.end = 1.0

    c.privacy = ml_collections.ConfigDict()
    c.privacy.delta = 1e-5
    c.privacy.relation = "add_remove"  # add_remove, replace
    # released_model, colluding_clients, decoded_updates, server: whom the target is meant for
    c.privacy.adversary = "released_model"
    c.privacy.target_epsilon = 0.0  # 0: none
    c.privacy.calibrate = True  # True: gamma follows from the target; False: stop when it is spent

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
    c.update_from_flattened_dict(VARIANTS[variant])
    if c.mechanism.clip == "l1":
        c.mechanism.clip_norm = l1_clip_norm
        c.mechanism.gamma = laplace_gamma
    return c
