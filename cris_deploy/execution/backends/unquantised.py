"""An int8 graph in float32 again, for OpenVINO on CPUs where int8 products are not faster.

What rounds between layers is taken out, and stored integers become the float32 weights that they
stand for. The results are those of the bundle's weights with one rounding less, so closer to
float32 PyTorch than the int8 products that the bundle was proved with (decision 19).
"""

from typing import Any, Final

_ROUNDING: Final = "FakeQuantize"
_SCALING: Final = "Multiply"
_BETWEEN: Final = ("Convert", "Subtract")


def rewrite(model: Any) -> int:
    """Take the rounding out of an `openvino.Model`, in place; say of how many values."""
    from openvino.passes import ConstantFolding, Manager

    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)  # weights, which are constants from integer to number
    count = 0
    for node in model.get_ordered_ops():
        # The scale is the last step from integers to the numbers that they stand for.
        if node.get_type_name() == _SCALING:
            before = node.input_value(0).get_node()
            while before.get_type_name() in _BETWEEN:
                before = before.input_value(0).get_node()
            if before.get_type_name() == _ROUNDING:
                node.output(0).replace(before.input_value(0))
                count += 1
    return count
