"""Retraining: leak-safe datasets, and the head that learns from answers."""
