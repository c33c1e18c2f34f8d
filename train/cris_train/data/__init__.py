"""Referring data: RefCOCO's file format, generated scenes, and what feeds the model."""
