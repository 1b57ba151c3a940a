"""The gateway beside its peers, on the same model, the same machine and in the same run."""
