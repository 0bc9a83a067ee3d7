"""Choosing the settings of models, without Spark and without the test tracks."""
