"""The trainers: supervised fine-tuning and GRPO, both TRL's, with what the paper needs around them."""
