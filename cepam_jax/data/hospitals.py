"""Breast tumours over hospitals that differ in size and in whom they treat: a table with natural clients.

The patients are scikit-learn's breast cancer data (Street, Wolberg, Mangasarian: Nuclear feature extraction
for breast tumor diagnosis, 1993; UCI, CC BY 4.0): 569 of them, 30 features of cell nuclei each, 212
malignant. Nothing says where they were treated. So the hospitals are made up, once and for all by the seed
below: hospital k has a number of places and draws patients with weights exp(MALIGNANT[k] y + LARGE[k] s),
where y is 1 for a malignant tumour and s the standardized rank of the tumour's mean radius among those of its
own diagnosis, from -1.73 to 1.73.
"""

import numpy as np

from cepam_jax.data import sources
from cepam_jax.data.examples import Examples, examples
from cepam_jax.extras import need

# Places of each hospital, in equal steps of the logarithm from 24 to 150; the sum is the number of patients.
PLACES = (24, 31, 41, 53, 68, 88, 114, 150)
# How much rather each hospital draws malignant tumours, in logarithms of odds, and, apart, tumours that are
# large for their diagnosis: a referral centre has both, a screening centre neither.
MALIGNANT = (2.0, -1.5, 1.0, -1.0, 1.5, 0.0, -0.7, 0.2)
LARGE = (0.8, -0.8, -0.5, 0.5, 0.8, -0.3, 0.3, 0.0)
SEED = 0
HELD_OUT = 0.25  # of each hospital's patients of each diagnosis, at least one


def owners_of(labels: np.ndarray, severity: np.ndarray) -> np.ndarray:
    """Which hospital each patient is in.

    Patients come in random order; each goes to a hospital with a probability proportional to its free places
    times its weight for such a patient.

    Args:
      labels: int[patients], 1 for malignant.
      severity: f64[patients], standardized within the diagnosis.

    Returns:
      int32[patients], the same for the same arguments.
    """
    random = np.random.default_rng(SEED)
    free = np.array(PLACES, np.float64)
    weights = np.exp(np.outer(labels, MALIGNANT) + np.outer(severity, LARGE))
    owners = np.empty(len(labels), np.int32)
    for patient in random.permutation(len(labels)):
        odds = free * weights[patient]
        owners[patient] = random.choice(len(free), p=odds / odds.sum())
        free[owners[patient]] -= 1
    return owners


def standardized_ranks(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """f64[n]: the rank of each value within its group, with mean 0 and variance 1 in every group."""
    found = np.empty(len(values))
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        rank = values[members].argsort(kind="stable").argsort(kind="stable")
        found[members] = (rank - rank.mean()) / rank.std()
    return found


def held_out(labels: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """bool[patients]: a part of each hospital's patients of each diagnosis, drawn at random, at least one."""
    random = np.random.default_rng(SEED + 1)
    test = np.zeros(len(labels), bool)
    for owner in np.unique(owners):
        for label in (0, 1):
            members = np.flatnonzero((owners == owner) & (labels == label))
            number = max(1, round(HELD_OUT * len(members)))
            test[random.permutation(members)[:number]] = True
    return test


@sources.register
def hospitals(data_dir) -> Examples:
    """569 patients with 30 features over 8 hospitals; embedded in scikit-learn, no files needed.

    Examples are "x" f32[30] and "label" (1: malignant); the constants "mean" and "std" f32[30] are those of
    the training patients of all hospitals.
    """
    del data_dir
    need("data set 'hospitals'", "data", "sklearn")
    from sklearn import datasets  # noqa: PLC0415  half a second, rarely needed

    x, benign = datasets.load_breast_cancer(return_X_y=True)
    labels = 1 - benign  # scikit-learn counts benign as 1
    owners = owners_of(labels, standardized_ranks(x[:, 0], labels))
    test = held_out(labels, owners)
    train = ~test
    return examples(
        {"x": x[train], "label": labels[train]},
        {"x": x[test], "label": labels[test]},
        {"mean": x[train].mean(0), "std": x[train].std(0)},
        labels=labels[train],
        owners=owners[train],
        test_owners=owners[test],
    )
