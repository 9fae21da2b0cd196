"""Diffusion as pure functions over a denoiser: noise levels, training objectives, samplers.

Conventions
-----------
* Variance preserving: ``x = alpha * x0 + sigma * eps`` with ``alpha ** 2 = gamma`` and
  ``sigma ** 2 = 1 - gamma``; ``eps`` is standard normal, and images are scaled to [-1, 1].
* A *level* is given by its gamma: 0 is pure noise, 1 is data. Levels are a float64 array in the order in
  which a sampler visits them, from noise to data: gamma increases.
* A *denoiser* is ``denoise(x, gamma) -> x0_hat`` with `x` and `x0_hat` of shape (N, C, ...) and `gamma` a
  float64 tensor of shape (N,); the condition is bound in its closure.
"""
