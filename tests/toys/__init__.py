"""A package from elsewhere that adds one of everything to diffc; tests install it by putting a folder on the path."""
