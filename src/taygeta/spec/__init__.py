"""The nouns: chips, models, deployments and batches, frozen; and the catalogue that names them."""
