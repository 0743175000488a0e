"""Retraining: leak-safe datasets and the head (comes with the correction loop)."""
