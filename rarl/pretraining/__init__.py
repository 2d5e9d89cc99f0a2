"""How the embedded base is made: its shape (`tiny`) and its training from scratch (`training`)."""
