"""Federated learning where one quantizer gives both compression and differential privacy."""

__version__ = "0.1.0"
