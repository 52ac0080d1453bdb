"""Deploying a bundle to a device over the system's OpenSSH."""
