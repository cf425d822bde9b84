"""The round: local training, messages, aggregation."""
