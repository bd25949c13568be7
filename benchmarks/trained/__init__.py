"""Models that were trained, and of which it is known which nodes do what."""
