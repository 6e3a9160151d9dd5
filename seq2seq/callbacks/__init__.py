"""Lightning callbacks: gradient flow, sample translations, divergence, reproducibility."""
