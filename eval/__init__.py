"""Evaluation: bad cases, metrics, latency and the gate (comes with the gate)."""
