"""O3Storage: a durable, verified, sealed object store driven over the S3 API."""
