"""What the studies of this project need and no stage of the pipeline does."""
