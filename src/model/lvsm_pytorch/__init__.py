"""The module API: LVSM and its masked autoencoder for code of one's own, and both as families of the trainer.

`src.lvsm_pytorch` re-exports what a user needs.
"""
