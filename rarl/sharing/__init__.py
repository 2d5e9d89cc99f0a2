"""A trained model as others get it: its folder, card and index, in the Hub's layout, and publishing it."""
