"""Quantisation: a float32 stage becomes an int8 one, calibrated on the user's own images.

sites.py        which layers compute in int8, and where their inputs are rounded
calibration.py  what values those inputs take
equalise.py     exact moves of scale between layers, so that one step size fits all channels
rounding.py     weights become integers, one step size per output channel
quantise.py     QuantizeLinear and DequantizeLinear are put in
half.py         what lies between them in float16, if that is asked for
stage.py        layers return to float32 until the logits are close enough
"""
