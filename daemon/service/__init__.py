"""What makes it a service: supervision, telemetry, web."""
