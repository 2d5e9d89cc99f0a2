"""A dress rehearsal: every part of the pipeline at a base's real size, with random weights (`rarl rehearse`)."""
