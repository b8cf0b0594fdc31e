"""Solvers of one timestep's least-squares problem in the null embedding."""
