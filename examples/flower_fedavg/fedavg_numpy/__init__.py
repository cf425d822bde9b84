"""Flower's own FedAvg with float32 arrays: what a federation sends without a quantizer."""
