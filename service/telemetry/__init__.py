"""What the gateway tells of itself: metrics, logs, timings and traces."""
