"""Integrations (evaluation's floor): turbocode inside other people's software. Each module imports what it needs."""
