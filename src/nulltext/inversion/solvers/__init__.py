"""Solvers of one timestep's least-squares problem in one embedding."""
