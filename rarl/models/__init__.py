"""Loading a base of a supported family, its image processing and features, and generation."""
