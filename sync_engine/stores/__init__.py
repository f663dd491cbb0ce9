"""Places that keep items: memory (L1), Redis (L2), SQL (L3), blobs."""
