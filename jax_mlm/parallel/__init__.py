"""Devices and hosts: meshes, compilation, stopping together."""
