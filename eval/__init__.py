"""Evaluation: metrics on bad cases, latency, and the gate."""
