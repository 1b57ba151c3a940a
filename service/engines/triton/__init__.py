"""Triton: the model runs in servers of its own, which several gateways may share."""
