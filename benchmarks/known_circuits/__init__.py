"""Circuits that others published, with the roles of their nodes."""
