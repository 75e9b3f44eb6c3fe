"""Data: sources -> splits -> batches."""
