"""The filter of organ labels by shape: features, thresholds and decisions."""
