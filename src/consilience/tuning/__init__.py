"""Statistics and coefficients from data, for the methods that need them."""
