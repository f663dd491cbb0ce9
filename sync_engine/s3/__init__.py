"""How the engine speaks S3: addresses, clients, errors, listings, verified uploads."""
