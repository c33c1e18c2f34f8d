"""Referring data: RefCOCO's file format, generated scenes, and the data set that feeds the model."""
