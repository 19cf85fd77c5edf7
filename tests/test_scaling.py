"""What the table of TPUs takes from a compiled program, from lines as the compiler writes them, shortened."""

import json

import pytest

from alexnet_jax.runtime.errors import InputError
from configs import paper
from experiments import scaling
from experiments.benchmarks import compiled
from experiments.plots.scaling import draw

HEAD = "HloModule jit_step, num_partitions=8\n"
MB = 1024 * 1024


@pytest.mark.parametrize(
    "line, axis, megabytes",
    [
        # Of n devices each keeps one n-th, and an all-reduce passes everything twice.
        ("f32[1,1048576]{1,0} all-reduce(%x), replica_groups={{0,2,4,6},{1,3,5,7}}", "data", 6),
        ("(f32[524288]{0}, bf16[1048576]{0}) all-reduce(%x, %y), replica_groups={{0,1},{2,3}}", "column", 4),
        ("f32[1048576]{0} all-reduce(%x), replica_groups={}", "data", 7),
        ("f32[1048576]{0} all-reduce(%x), replica_groups=mesh['data'=4,'column'=2] {'data'}", "data", 6),
        ("f32[1048576]{0} all-reduce(%x), replica_groups=mesh['data'=4,'column'=2] {'column'}", "column", 4),
        (
            "f32[1048576] all-reduce(%x), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}",
            "column",
            4,
        ),
        ("bf16[1048576]{0} all-gather(%x), replica_groups=[4,2]<=[8]", "column", 1),
        ("bf16[1048576]{0} all-gather(%x), replica_groups=[2,4]<=[4,2]T(1,0)", "data", 1.5),
        ("bf16[1048576]{0} all-gather(%x), replica_groups=[4,2]<=[2,4]T(1,0)", "data", 1),
        ("(f32[524288]{0}, f32[1048576]{0}) all-gather-start(%x), replica_groups={{0,1},{2,3}}", "column", 2),
        (
            "((f32[2097152]), f32[1048576]) reduce-scatter-start(%x), replica_groups={{0,1},{2,3}}",
            "column",
            4,
        ),
        ("f32[1048576]{0} reduce-scatter(%x), replica_groups={{0,1},{2,3}}", "column", 4),
        ("f32[1048576]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}", "column", 4),
        ("f32[1048576]{0} collective-permute(%x), source_target_pairs={{0,2},{2,4}}", "data", 4),
        ("f32[1048576]{0} fusion(%all-reduce.1), calls=%f", "data", 0),
    ],
)
def test_bytes_exchanged(line, axis, megabytes):
    sent = compiled.exchanged(f"{HEAD}  %a = {line}, channel_id=1\n", columns=2)
    assert sent.pop(axis) == megabytes * MB
    assert list(sent.values()) == [0]


def test_without_an_axis_column_all_goes_over_data():
    line = "  %a = f32[1048576]{0} all-reduce(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}\n"
    assert compiled.exchanged(HEAD + line, columns=1) == {"column": 0, "data": 4 * MB}


def test_cycles_of_a_loop_count_as_often_as_it_runs():
    program = """
%body (x: f32[]) -> f32[] {
  %a = f32[] add(%x), backend_config={"estimated_cycles":"5"}
}

ENTRY %main (x: f32[]) -> f32[] {
  %b = f32[] add(%x), backend_config={"estimated_cycles":"2"}
  %c = f32[] while(%b), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""
    assert compiled.cycles(program) == 2 + 3 * 5


def test_traffic_of_a_gpus_program():
    program = """
%fused (x: f32[]) -> f32[] {
  ROOT %z = f32[1000]{0} add(%x, %x)
}

ENTRY %main (p: f32[1000]) -> f32[1000] {
  %p = f32[1000]{0} parameter(0)
  %q = bf16[500]{0} parameter(1)
  %b = f32[10,100]{1,0} bitcast(%p)
  %f = (f32[1000]{0}, u8[8]{0}) fusion(%b, %q), calls=%fused, backend_config={"exec_time_us":2.5}
  %g = f32[1000]{0} get-tuple-element(%f), index=0
  %c = (f32[20]{0}, u8[100]{0}) custom-call(%g, %p), custom_call_target="__cudnn$convForward"
  %s = f32[2000]{0} all-gather-start(%g), replica_groups={{0,1}}
  %d = f32[2000]{0} all-gather-done(%s)
}
"""
    moved = (4000 + 8 + 4000 + 1000) + (80 + 100 + 4000 + 4000) + (8000 + 4000)
    assert compiled.traffic(program) == (3, moved, pytest.approx(2.5e-6), 1)


def test_floors_of_the_papers_step_are_those_counted_by_hand():
    """In megabytes of 128 images' maps in float32."""

    def maps(side, features):
        return 128 * 4 * side**2 * features / 1e6

    images, conv1, pool1, conv2, pool2 = (
        maps(224, 3),
        maps(55, 96),
        maps(27, 96),
        maps(27, 256),
        maps(13, 256),
    )
    conv3, conv5, pool5, fc = maps(13, 384), maps(13, 256), maps(6, 256), maps(1, 4096)
    inputs = 2 * images + 3 * (pool1 + pool2 + 2 * conv3 + pool5 + 2 * fc)
    outputs = 3 * (conv1 + conv2 + 2 * conv3 + conv5 + 2 * fc + maps(1, 1000))
    after = 3 * (conv1 + conv2 + conv5) + 2 * (pool1 + pool2 + pool5)
    update = 8 * 4 * 60.965224
    moved, flop = compiled.floors(paper.get_config(), 128, 1, 1)
    assert moved / 1e6 == pytest.approx(update + inputs + outputs + after, rel=1e-6)
    assert flop == pytest.approx(529e9, rel=2e-2)
    half, _ = compiled.floors(paper.get_config(), 128, 2, 1)
    assert half / 1e6 == pytest.approx(update + (inputs + outputs + after) / 2, rel=1e-6)
    assert compiled.floors(paper.get_config(), 128, 1, 2)[1] == flop / 2


def test_the_paper_s_batch_is_left_out_where_there_are_more_devices_than_images():
    """Devices, of which a chip of v4 has two."""
    found = scaling.cases(["v4:4x4x4", "v4:4x4x8", "v4:4x8x8", "v5e:8x16"], 16)
    fixed = [(topology, columns) for topology, columns, batch in found if batch == 128]
    both = [("v4:4x4x4", 1), ("v4:4x4x4", 2)]
    assert fixed == [*both, ("v4:4x4x8", 2), ("v5e:8x16", 1), ("v5e:8x16", 2)]
    assert len(found) == len(fixed) + 2 * 4


def test_the_plots_rates_are_numbers_also_within_a_decade():
    for rates in ((11_412, 1_730_068), (11_412, 27_917)):
        mesh = {"topology": "v5e:2x2", "mesh": [4, 1], "global_batch": 128}
        rows = [{**mesh, "devices": 4**n, "images_per_second": rate} for n, rate in enumerate(rates, 1)]
        figure = draw(rows, 128)
        figure.canvas.draw()
        (axes,) = figure.axes
        low, high = axes.get_ylim()
        texts = [label.get_text() for label in axes.get_yticklabels(which="both")]
        shown = [
            number for number in (float(text.replace(",", "")) for text in texts) if low <= number <= high
        ]
        assert len(shown) > 2


CONFIG = paper.get_config()


class Lowered:
    """A program that must not be compiled."""

    def as_text(self):
        return "module"


def test_a_line_is_kept_while_its_program_and_devices_are_the_same(monkeypatch):
    monkeypatch.setitem(scaling.COMPILERS, "tpu", ())
    monkeypatch.setattr(scaling, "lowered_step", lambda *case: (CONFIG, 4, Lowered()))
    line = {"program": scaling._fingerprint("v5e:2x2", CONFIG, Lowered())}
    assert scaling.row(("v5e:2x2", 1, 128, None), {line["program"]: line}) is line
    with pytest.raises(AttributeError, match="compile"):
        scaling.row(("v5e:4x4", 1, 128, None), {line["program"]: line})


@pytest.fixture
def as_offline(monkeypatch):
    """The variables that a command sets, to be put back."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def test_mesh_column_selects_one_mesh_of_a_configuration(monkeypatch, tmp_path, as_offline):
    lines = []

    def row(case, known):
        lines.append(case[:3])
        return {"topology": case[0], "devices": 8, "mesh": [4, case[1]], "dtype": "float32", "fused": False,
                "global_batch": 128, "launches": 1, "times_floor": 1, "program": str(case[:3])}  # fmt: skip

    monkeypatch.setattr(scaling, "row", row)
    flags = f"--out={tmp_path}/gpu", "--only=h100:512", "--config=configs/large_batch.py:8192"
    scaling.main([*flags])
    scaling.main([*flags, "--config.mesh.column=2"])
    assert lines == [("h100:512", 1, 8192), ("h100:512", 2, 8192), ("h100:512", 2, 8192)]
    for wrong in ("--config.mesh.column=3", "--config.mesh.data=1024"):
        with pytest.raises(InputError, match="^mesh"):
            scaling.main([*flags, wrong])
    with pytest.raises(InputError, match="^mesh.*more than the 1 devices"):
        scaling.main([*flags, "--only=h100:1", "--config.mesh.column=2"])


def test_a_table_that_is_stopped_keeps_its_lines(monkeypatch, tmp_path, as_offline):
    compiled = []

    def row(case, known):
        name = "-".join(map(str, case[:3]))
        if name not in known:
            compiled.append(name)
            if len(compiled) == 3:
                raise KeyboardInterrupt
        line = dict.fromkeys(("launches", "column_mb", "times_floor"), 1)
        return line | {"topology": case[0], "devices": 2, "mesh": [2, 1], "dtype": "float32", "fused": False,
                       "global_batch": 128, "program": name}  # fmt: skip

    monkeypatch.setattr(scaling, "row", row)
    arguments = [f"--out={tmp_path}/gpu", "--only=h100:1,h100:2"]
    with pytest.raises(KeyboardInterrupt):
        scaling.main(arguments)
    scaling.main(arguments)
    assert len(compiled) == len(set(compiled)) + 1 == 5 + 1
    rows = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["program"] for row in rows] == sorted(set(compiled), key=compiled.index)
    assert len((tmp_path / "gpu.md").read_text().splitlines()) == 2 + 5
