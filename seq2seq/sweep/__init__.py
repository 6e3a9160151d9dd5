"""Sweeps: many runs from one command, their table, their figures, and how they go on."""
