"""Measurements and checks of dumps, quantized files and the installation."""
