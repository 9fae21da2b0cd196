"""Trained models: their networks, description, weights, sampling, card and exports."""
