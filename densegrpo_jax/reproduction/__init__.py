"""The evidence for DenseGRPO's claims: which runs a figure needs, running them, measurements without training, and what they say."""
