"""Trained models: networks, description, weights, sampling, card and exports."""
