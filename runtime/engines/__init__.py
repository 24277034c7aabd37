"""Open graphs in the engines that compute them."""
