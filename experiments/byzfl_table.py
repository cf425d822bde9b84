"""What ByzFL makes of small inputs: every rule and attack that this project has too, for the tests.

  python experiments/byzfl_table.py tests/federated/byzfl.json

Needs an interpreter of its own with `byzfl==0.0.11` (and so PyTorch), and nothing of this project. The tests
read the table, and hold `federated.aggregation` and `federated.attacks` to it.
"""

import json
import sys

import byzfl
import numpy as np

HONEST, LIARS, D = 8, 3, 5  # of the attacks
SEED = 2026


def inputs():
    """Name -> (updates [n, d], f): random ones, some far away, some equal, some close together."""
    random = np.random.default_rng(SEED)
    normal = random.normal(size=(9, 6))
    far = random.normal(size=(11, 6))
    far[[1, 4, 7]] += [[1e3], [-1e3], [20.0]]
    together = random.normal(size=(10, 4))
    together[:3] = 0.3 + 1e-2 * random.normal(size=(3, 4))
    scales = random.normal(size=(9, 6)) * np.geomspace(0.01, 10, 9)[:, None]
    same = np.tile(random.normal(size=6), (7, 1))
    return {
        "normal": (normal, 2),
        "far": (far, 3),
        "together": (together, 3),
        "scales": (scales, 1),
        "same": (same, 2),
    }


def rules(f):
    """Name -> function [n, d] -> [d] or [m, d]."""
    return {
        "median": byzfl.Median(),
        "trimmed_mean": byzfl.TrMean(f),
        "krum": byzfl.Krum(f),
        "multi_krum": byzfl.MultiKrum(f),
        "smallest_diameter": byzfl.MDA(f),
        "geometric_median": byzfl.GeometricMedian(nu=0.1, T=3),
        "geometric_median_long": byzfl.GeometricMedian(nu=0.01, T=20),
        "centered_clipping": byzfl.CenteredClipping(L=1, tau=100.0),
        "centered_clipping_tight": byzfl.CenteredClipping(L=3, tau=0.7),
        "mixing": byzfl.NNM(f),
    }


def attacks(honest):
    """Name -> vector [d] that the liars send."""
    found = {
        "sign_flip": byzfl.SignFlipping()(honest),
        "inner_product": byzfl.InnerProductManipulation(tau=2.0)(honest),
        "little_is_enough": byzfl.ALittleIsEnough(tau=1.5)(honest),
        "mimic": byzfl.Mimic(0)(honest),
    }
    for rule, built in (("trimmed_mean", byzfl.TrMean(LIARS)), ("geometric_median", byzfl.GeometricMedian())):
        common = {"agg": built, "pre_agg_list": [byzfl.NNM(LIARS)], "f": LIARS}
        found[f"optimal_inner_product {rule}"] = byzfl.Optimal_InnerProductManipulation(**common)(honest)
        found[f"optimal_little {rule}"] = byzfl.Optimal_ALittleIsEnough(**common)(honest)
    return found


def main(path):
    cases = {}
    for name, (updates, f) in inputs().items():
        results = {rule: np.asarray(built(updates.copy())).tolist() for rule, built in rules(f).items()}
        cases[name] = {"updates": updates.tolist(), "f": f, "results": results}
    honest = np.random.default_rng(SEED + 1).normal(0.5, 1.0, size=(HONEST, D))
    told = {name: np.asarray(vector).tolist() for name, vector in attacks(honest.copy()).items()}
    table = {
        "made by": "byzfl 0.0.11",
        "rules": cases,
        "attacks": {"honest": honest.tolist(), "liars": LIARS, "results": told},
    }
    with open(path, "w") as file:
        json.dump(table, file)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
