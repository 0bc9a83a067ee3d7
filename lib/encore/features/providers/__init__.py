"""Providers of audio features."""
