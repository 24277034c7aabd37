"""Define bundles: their files, their manifest, and how they are opened."""
