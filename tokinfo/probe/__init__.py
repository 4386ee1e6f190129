"""From a model and a site to activations, distances and noise floors."""
