"""A whole fleet on one machine and on loopback: Redis, S3, Flower and a worker."""
