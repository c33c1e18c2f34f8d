"""Tables of a record, on a terminal and in Markdown."""

import dataclasses

import pytest

from cris_bench.record.rows import NotFinite, Scope
from cris_bench.record.schema import BundleFacts, Ceiling, Parity, Record, StageWork
from cris_bench.report.reached import reached
from cris_bench.report.section import Section, aligned, to_markdown, to_text
from cris_bench.report.summary import markdown, sections, terminal
from tests.stand_ins.fake_record import machine, ours, record, row, whole_record


def _table(found: Record, title: str) -> list[dict[str, str]]:
    """Cells by heading of one of the record's tables."""
    section = next(section for section in sections(found) if section.title == title)
    return [dict(zip(section.columns, cells, strict=True)) for cells in section.rows]


def test_network_table_has_the_paper_beside_it() -> None:
    eager, _, single, eight = _table(whole_record(), "Network only")
    assert (eager["contestant"], eager["role"]) == ("PyTorch eager fp32", "baseline")
    assert (single["ms a mask"], single["masks/s"], single["x eager"]) == (
        "100.0",
        "10.00",
        "5.00 (4.90 to 5.10)",
    )
    assert single["paper, V100"] == "19.22"
    assert single["mIoU"] == "70.00"  # the very file's, beside its time
    # eight masks in a pass of 320 ms; the paper has no such figure
    assert (eight["expressions"], eight["ms a mask"], eight["paper, V100"]) == ("8", "40.0", "")


def test_end_to_end_says_what_it_adds() -> None:
    rows = {cells["contestant"]: cells for cells in _table(whole_record(), "End to end")}
    assert rows["openvino int8"]["over network"] == "+3.0%"
    assert "1920 x 1080" in terminal(whole_record())


def test_columns_without_cells_are_left_out() -> None:
    (cells,) = _table(whole_record(), "Load")
    assert set(cells) == {"contestant", "role", "ms"}
    (cells,) = _table(whole_record(), "Overhead of the engine")
    assert cells["ms"] == "0.200"
    network = _table(dataclasses.replace(record(), paper_fps=None), "Network only")[0]
    assert not {"paper, V100", "images", "expressions", "remarks"} & set(network)


def test_a_scope_that_was_not_measured_has_no_table() -> None:
    titles = [section.title for section in sections(record())]
    assert titles == ["cris-bench", "Like for like", "Network only", "Bundles"]


def test_noise_is_said_in_words() -> None:
    noisy = record(row(), ours(seconds=(0.05, 0.1, 0.1, 0.2)))
    assert _table(noisy, "Network only")[1]["remarks"] == "noisy"
    assert "more than 15% of their median" in terminal(noisy)
    assert "oisy" not in terminal(record())


@pytest.mark.parametrize(
    ("parity", "remark"),
    [
        (Parity.PROVED, None),
        (Parity.FAILED, "PARITY GATE FAILED"),
        (Parity.NONE, "parity not proved"),
    ],
)
def test_parity_is_marked(parity: Parity, remark: str | None) -> None:
    found = record(bundles={"int8": BundleFacts("int8", "ab" * 32, 1, parity)})
    assert _table(found, "Network only")[1].get("remarks") == remark
    failed = "int8 does not give the checkpoint's masks" in markdown(found)
    assert failed == (parity is Parity.FAILED)


def test_an_error_that_is_not_finite_is_said() -> None:
    cells = _table(record(row(logit_error=0.0), ours(logit_error=NotFinite.NAN)), "Network only")
    assert [row["logit error"] for row in cells] == ["0.0e+00", "not finite"]


def test_ceilings_of_mixed_arithmetic_are_those_of_its_products() -> None:
    work = StageWork("mask_decoder", 100_000_000_000, 60_000_000, 0.1, "openvino int8-bf16")
    ceilings = (Ceiling("cpu", "bf16", 700e9, 60e9), Ceiling("cpu", "int8", 2000e9, 60e9))
    found = record(ours("int8-bf16"), ceilings=ceilings, work=(work,))
    (stage,) = reached(found)
    assert stage.matrix_share == pytest.approx(0.5)  # 1000 of 2000 Gop/s
    assert stage.copy_share == pytest.approx(0.01)  # 0.6 of 60 GB/s
    (cells,) = _table(found, "Stages against the ceilings")
    assert (cells["Gop/s"], cells["of matrix"], cells["of bandwidth"]) == ("1,000", "50%", "1%")


def test_nothing_is_above_its_ceiling() -> None:
    fast = StageWork("image_encoder", 80_000_000_000, 60_000_000, 0.1, "openvino int8")
    slow = StageWork("mask_decoder", 40_000_000_000, 60_000_000, 0.1, "openvino int8")
    fewer = StageWork("mask_decoder", 90_000_000_000, 6_000, 0.1, "openvino fp32", fewer=True)
    ceilings = (Ceiling("cpu", "int8", 500e9, 0.3e9), Ceiling("cpu", "fp32", 400e9, 60e9))
    found = record(ours(), ours("fp32", bundle=None), ceilings=ceilings, work=(fast, slow, fewer))
    # What a stage reached (800 Gop/s, 0.6 GB/s) is what the machine can.
    assert [stage.matrix_share for stage in reached(found)] == [1.0, 0.5, None]
    assert [stage.copy_share for stage in reached(found)][:2] == [1.0, 1.0]
    shares = [cells["of matrix"] for cells in _table(found, "Stages against the ceilings")]
    assert shares == ["100%", "50%", "fewer products"]


def test_energy_and_its_absence_are_said() -> None:
    (load,) = whole_record().clients
    metered = dataclasses.replace(load, joules=7.2, cpu_threads=2, streams=2)
    found = dataclasses.replace(whole_record(), clients=(metered,), energy="nobody tells")
    (cells,) = _table(found, "Throughput")
    assert cells["masks/Wh"] == "2,000"  # four masks of 7.2 joules
    assert cells["contestant"] == "openvino int8, 2 threads, 2 streams"
    assert "Energy: nobody tells." in terminal(found)


def test_a_gpus_network_is_said_to_be_the_devices_own() -> None:
    assert "the GPU's own clock" in terminal(record(ours(device="cuda")))
    assert "GPU" not in terminal(record())


def test_a_tree_with_changes_is_said() -> None:
    assert "NOT OF A COMMIT" in terminal(record(commit="0123abc+"))
    assert "NOT OF A COMMIT" not in terminal(record())


def test_a_ceiling_of_another_device_is_none() -> None:
    work = StageWork("mask_decoder", 100_000_000_000, 60_000_000, 0.1, "openvino int8")
    ceilings = (Ceiling("cuda", "int8", 2000e9, 60e9),)
    found = record(ours(), ceilings=ceilings, work=(work,))
    assert _table(found, "Stages against the ceilings")[0]["of matrix"] == "not measured"


def test_memory_clients_and_accuracy() -> None:
    found = whole_record()
    (cells,) = _table(found, "Memory")
    assert cells["peak/weights"] == "4.00"
    assert "peak on the device" not in cells  # nobody ran on one
    (peak,) = found.memory
    on_gpu = dataclasses.replace(peak, device_peak_bytes=2_000_000_000)
    on_gpu_cells = _table(dataclasses.replace(found, memory=(peak, on_gpu)), "Memory")
    assert [cells["peak on the device"] for cells in on_gpu_cells] == ["", "2,000"]
    (load,) = _table(found, "Throughput")
    assert (load["masks/s"], load["p95 ms"]) == ("2.00", "400.0")
    assert not {"masks/Wh", "$ per million"} & load.keys()
    assert _table(found, "Accuracy")[0]["Pr@50"] == "80.00"


def test_who_is_absent_comes_with_the_command() -> None:
    (cells,) = _table(whole_record(), "Not here")
    assert cells == {"why": "pip install 'cris-deploy[tensorrt]'", "who": "tensorrt"}


def test_the_heading_says_what_ran_on_what() -> None:
    text = terminal(record(machine=machine(gpu="Example GPU 1")))
    for said in (
        "146.85 M",
        "Example CPU 9000",
        "GPU Example GPU 1",
        "3,700 MHz",
        "torch 2.15.0",
        "commit 0123abc",
        "6 timed rounds",
        "contestants in turn",
    ):
        assert said in text
    assert "`cris-bench --scopes all`" in text
    assert "checkpoint cdcdcdcdcdcd" in terminal(
        dataclasses.replace(record(), model=dataclasses.replace(record().model, weights="cd" * 32))
    )


def test_the_heading_says_which_instructions_there_are() -> None:
    found = terminal(record(machine=machine(flags=("AVX2", "AVX-512"))))
    assert "(AVX2, AVX-512; without VNNI, BF16, AMX)" in found


def test_every_scope_has_words() -> None:
    for scope in Scope:
        assert len(sections(record(ours(scope=scope)))) == 3


def test_numbers_have_the_decimals_that_the_smallest_wants() -> None:
    assert aligned([12.34, 500.0]) == ["12.3", "500.0"]
    assert aligned([1.234, 500.0]) == ["1.23", "500.00"]
    assert aligned([-0.0123, 0.0]) == ["-0.012", "0.000"]
    assert aligned([]) == []


def test_layout() -> None:
    section = Section(
        "T", ("Above.",), ("a", "n", "w"), (("x|y", "1", "z"),), frozenset({"w"}), ("E.",)
    )
    assert to_markdown([section]).splitlines() == [
        *("## T", "", "Above.", ""),
        *("| a    |   n | w   |", "|:-----|----:|:----|", "| x\\|y |   1 | z   |"),
        *("", "E."),
    ]
    assert to_text([section]).splitlines() == [
        *("T", "Above.", "a      n  w", "x|y    1  z", "E."),
    ]
