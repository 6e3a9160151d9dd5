"""Everything that sets a weight before the first step: schemes, rules and their report."""
