"""Power meters' logs: every format that is known, by examples of what its program writes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from athe_export.bench.meters import PRESETS, asked_columns
from athe_export.bench.power_log import check_format, read_power_log
from athe_export.errors import PowerLogError
from tests.conftest import ROOT

# Two samples, one second apart, of 5 V at 0.5 and 0.7 A, as each program would write them: 2.5 and 3.5 W
EXAMPLES = {
    "fnirsi-logger": "\ntimestamp sample_in_packet voltage_V current_A dp_V dn_V temp_C_ema energy_Ws capacity_As\n"
    "1657568326.775 0 5.00000 0.50000 1.184 1.031 30.500 0.000000 0.000001\n"
    "1657568327.775 1 5.00000 0.70000 1.184 1.033 30.500 0.000000 0.000001\n",
    "pyummeter": "Date;Voltage (V);Intensity (A);Power (W);Resistance (Ohm);USB D+ (V);USB D- (V);Charging Mode;Temperature (°C)\r\n"
    "2026-03-01 12:00:00.250000;5.0;0.5;2.5;10.0;0.01;0.02;DCP1.5A;20\r\n"
    "2026-03-01 12:00:01.250000;5.0;0.7;3.5;7.1;0.01;0.02;DCP1.5A;20\r\n",
    "rd-usb": "Time,Voltage (V),Current (A),Power (W),Temperature (°C),Run time (seconds),Unix time\r\n"
    "2026-03-01 12:00:00,5.0,0.5,2.5,20,1,1772366400.1\r\n2026-03-01 12:00:01,5.0,0.7,3.5,20,2,1772366401.1\r\n",
    "tc66c": "Time[S],Volt[V],Current[A],Power[W]\n  0.1,05.0000,0.50000,02.5000\n  1.1,05.0000,0.70000,03.5000\n",
    "km003c-cli": "\ufeffTransfer,Packet,Sample,Timestamp Raw,Timestamp(us),Vbus Raw,Vbus(mV),Vbus(V),Ibus(mA),Ibus(A),Power(W),Padding\n"
    "1,1,0,,100000,5000000,5000.0,5.000000000,500.0,0.500000000,2.500000000,\n"
    "2,2,0,,1100000,5000000,5000.0,5.000000000,700.0,0.700000000,3.500000000,\n",
    "km003c-logger": "timestamp_ms,vbus_µV,ibus_µA,vcc1_mV,vcc2_mV,vdp_mV,vdm_mV\r\n"
    "100,5000000,500000,1.0,1.0,1,1\r\n1100,5000000,700000,1.0,1.0,1,1\r\n",
}


def write(folder: Path, text: str) -> Path:
    path = folder / "meter.csv"
    path.write_bytes(text.encode())
    return path


def test_every_known_format_has_an_example_here_and_a_source_in_the_docs() -> None:
    assert set(EXAMPLES) == {p.name for p in PRESETS}
    rows = [line for line in (ROOT / "docs/energy.md").read_text().splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows if "](https://" in row} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("asked", [True, False], ids=["named", "auto"])
def test_a_known_format_is_read_by_its_header(name: str, asked: bool, tmp_path: Path) -> None:
    path = write(tmp_path, EXAMPLES[name])
    check_format(path, None)
    log = read_power_log(path, asked_columns(name) if asked else None)
    assert log.format == name and log.skipped_lines == () and log.notes == ()
    np.testing.assert_allclose(log.watts, [2.5, 3.5])
    np.testing.assert_allclose(np.diff(log.times), [1.0])
    assert log.interval_s == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ("time=t:ms,power=p:mW", "p;t\n2500;0\n3500;1000\n"),
        ("time=t,voltage=U:mV,current=I:mA", "t,U,I\n0,5000,500\n1,5000,700\n"),
        ("time=when, power=P(W)", "when\tP(W)\n2026-03-01T12:00:00Z\t2.5\n2026-03-01T12:00:01+00:00\t3.5\n"),
        ("time=a:b,power=c", "a:b,c\n0,2.5\n1,3.5\n"),  # a colon that is no unit
        ("time=t,power=p", "t;p\n0,0;2,5\n1,0;3,5\n"),  # a comma for the point
        ("time=t,power=p", "made by nobody\n\nt,p\n0,2.5\n1,3.5\n"),  # a preamble
    ],
)
def test_columns_that_are_named_are_read_with_their_units(mapping: str, text: str, tmp_path: Path) -> None:
    log = read_power_log(write(tmp_path, text), asked_columns(mapping))
    assert log.format == "columns"
    np.testing.assert_allclose(log.watts, [2.5, 3.5])
    np.testing.assert_allclose(np.diff(log.times), [1.0])


def test_a_line_that_is_half_written_is_left_out_and_named(tmp_path: Path) -> None:
    log = read_power_log(write(tmp_path, EXAMPLES["tc66c"] + "  2.1,05.00"))
    assert len(log.watts) == 2 and log.skipped_lines == (4,)


def test_samples_of_a_packet_that_stand_out_of_order_are_sorted(tmp_path: Path) -> None:
    log = read_power_log(write(tmp_path, "t,p\n0.00,1\n0.03,2\n0.01,3\n0.04,4\n"), asked_columns("time=t,power=p"))
    assert log.times.tolist() == [0.0, 0.01, 0.03, 0.04] and log.watts.tolist() == [1, 3, 2, 4]


def test_a_header_that_is_written_again_is_no_sample(tmp_path: Path) -> None:
    text = EXAMPLES["fnirsi-logger"]
    later = text.replace("1657568326", "1657568336").replace("1657568327", "1657568337")
    assert len(read_power_log(write(tmp_path, text + later)).watts) == 4


def test_a_meter_that_is_plugged_in_the_other_way_round_is_said(tmp_path: Path) -> None:
    log = read_power_log(write(tmp_path, EXAMPLES["tc66c"].replace("0.50000", "-0.5").replace("0.70000", "-0.7")))
    np.testing.assert_allclose(log.watts, [2.5, 3.5])
    assert "negative" in log.notes[0]


def test_the_resolution_is_that_of_volts_and_amperes_together(tmp_path: Path) -> None:
    text = "t,U,I\n" + "".join(f"{n},5.0{n % 3},0.{500 + n % 7}\n" for n in range(20))
    log = read_power_log(write(tmp_path, text), asked_columns("time=t,voltage=U,current=I"))
    assert log.resolution_w == pytest.approx(np.hypot(0.01 * 0.503, 0.001 * 5.01), rel=0.02)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("when,what\n1,2\n", "format is not known; it begins: when,what"),
        ("", "no samples yet"),
        ("\n\n", "no samples yet"),
        ("Time[S],Volt[V],Current[A],Power[W]\n", "no samples yet"),
        ("Time[S],Volt[V],Current[A]\n0,5,1\nx,y,z\nx,y,z\nx,y,z\n", "3 of 4 lines have no number"),
        ("Time[S],Volt[V],Current[A]\n0,5,1\n9,5,1\n3,5,1\n", "the time goes back by 6.0 s in line 4"),
        ("Time[S],Volt[V],Current[A]\n0,5,1\n90000,5,1\n", "longer than a day"),
        ("PK\3\4\0\0", "not text"),
        ("x" * 200_000 + ",1\n", "format is not known; it begins: xxx"),
        ("Time[S],Volt[V],Current[A]\n0,5,1\n" + 3 * ('"' + "1" * 200_000 + '",5,1\n'), "3 of 4 lines have no number"),
    ],
    ids=["unknown", "empty", "blank", "a header alone", "no numbers", "two recordings", "a week", "a spreadsheet", "one long line",
         "long cells"],
)  # fmt: skip
def test_a_log_that_cannot_be_read_is_refused_with_the_reason(content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(PowerLogError) as caught:
        read_power_log(write(tmp_path, content))
    assert said in caught.value.what and caught.value.where == str(tmp_path / "meter.csv") and caught.value.exit_code == 2


def test_a_log_that_is_not_there_may_come_but_its_folder_may_not(tmp_path: Path) -> None:
    check_format(tmp_path / "meter.csv", None)
    write(tmp_path, "")
    check_format(tmp_path / "meter.csv", None)
    for path, said in ((tmp_path / "no" / "meter.csv", "no such folder"), (tmp_path, "is a folder")):
        with pytest.raises(PowerLogError, match=said):
            check_format(path, None)
    with pytest.raises(PowerLogError, match="no such log"):
        read_power_log(tmp_path / "other.csv")
    write(tmp_path, "when,what\n")
    with pytest.raises(PowerLogError, match="not known"):  # before minutes of measuring
        check_format(tmp_path / "meter.csv", None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fnirsy", "neither a format"),
        ("power=p", "no column is named for the time"),
        ("time=t", "power takes one column"),
        ("time=t,power=p,current=c", "power takes one column"),
        ("time=t,voltage=v", "power takes one column"),
        ("time=t,time=u,power=p", "named twice"),
        ("time=,power=p", "no column is named after time="),
        ("x,time=t,power=p", "neither a format"),
    ],
)
def test_a_mapping_that_says_too_little_is_refused(text: str, said: str) -> None:
    with pytest.raises(PowerLogError, match=said) as caught:
        asked_columns(text)
    assert caught.value.where == "--power-columns" and "time=COLUMN" in caught.value.remedy


def test_columns_that_the_log_lacks_are_named(tmp_path: Path) -> None:
    with pytest.raises(PowerLogError, match="no line with 'when', 'P'; it begins: t,p"):
        read_power_log(write(tmp_path, "t,p\n1,2\n"), asked_columns("time=when,power=P"))
