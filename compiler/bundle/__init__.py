"""Write bundles: folders, manifests, provenance, reports."""
