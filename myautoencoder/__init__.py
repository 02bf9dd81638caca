"""The first stage: pretraining the multisource autoencoder (see autoencoder.py)."""
