"""What gradient and signal do on their way through time."""
