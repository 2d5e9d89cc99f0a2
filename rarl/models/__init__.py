"""Loading a Qwen2-VL, its image processing and features, and generation."""
