"""The model side: loading any Qwen2-VL, the tiny one's construction, vision features, generation."""
