# SPDX-License-Identifier: Apache-2.0
"""Which device is fastest, at what energy and cost, and with which doubts; the file of prices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bertbench.common.cli.report import main
from bertbench.common.errors import BadInput
from bertbench.common.report.markdown import text
from bertbench.common.report.page import Report, html
from bertbench.common.report.prices import HOURS_OF_A_YEAR, Price, by_device, load
from bertbench.common.report.ranking import paragraph, ranked
from bertbench.common.report.tables import Table
from bertbench.common.results.statistics import ratio
from bertbench.common.results.store import load_results
from tests.unit.results.constructed import device, make_run
from tests.unit.results.test_report import column

QUALITY = {"metric": "mlm_accuracy", "value": 0.6, "target": 0.5, "reached": True, "samples": 48}
FAST, SLOW = [90.0, 95.0, 100.0, 105.0, 110.0, 100.0], [200.0, 190.0, 210.0, 205.0, 195.0, 200.0]
PRICES = (Price("Card 1", 3.6, "EUR", "a list", "p.toml, line 1"),)


def made(root: Path, name: str, times: list[float], power: float = 100.0, **more: Any) -> None:
    """Runs to the target in each of ``times``, at a rate of 800 sequences in that time."""
    for seed, seconds in enumerate(times):
        values = {"time_to_target_s": seconds, "sequences_per_second": 800 / seconds,
                  "power_w": power}  # fmt: skip
        make_run(root, values, seed=seed, quality=QUALITY, devices=[device(name=name)],
                 **({"precision": "bf16", "system": name.lower()} | more))  # fmt: skip


def report(root: Path, prices: tuple[Price, ...] = ()) -> Report:
    return Report(*load_results([root], references=False), prices)


def ranking(root: Path, prices: tuple[Price, ...] = ()) -> Table:
    return report(root, prices).sections[0].tables[0]


def test_the_fastest_is_named_with_its_lead_energy_and_cost(tmp_path: Path) -> None:
    made(tmp_path, "Card 1", FAST)
    made(tmp_path, "Card 2", SLOW, power=40.0)
    found = report(tmp_path, PRICES).sections[0]
    assert found.id == "fastest"
    lead = ratio(FAST, SLOW)
    assert lead is not None and lead.interval is not None and round(lead.estimate, 2) == 2.0
    table = found.tables[0]
    assert column(table, "Rank") == ["1", "2"]
    assert column(table, "Device") == ["1 x Card 1", "1 x Card 2"]
    assert column(table, "Speed") == ["1", f"{1 / lead.estimate:.3g}"]
    # 100 W at 8 sequences/s, 40 W at 4: 12.5 and 10 J; 3.6 EUR/h for 100 s and for 125,000 s.
    assert column(table, "J/sequence") == ["12.5", "10"]
    assert column(table, "Sequences/J") == ["0.08", "0.1"]
    assert column(table, "Cost to target") == ["0.1 EUR", ""]
    assert column(table, "Cost of 1 M sequences") == ["125 EUR", ""]
    assert "Card 1: 3.6 EUR per device-hour (a list)" in table.intro
    low, high = (f"{v:.3g}" for v in lead.interval[:2])
    assert found.text == (
        "toy to mlm_accuracy 0.5: 1 x Card 1 (bf16) is the fastest of 2 configurations with 100 s, "
        f"{lead.estimate:.3g} times ({low} to {high} (95 %)) the speed of 1 x Card 2 (bf16), "
        "12.5 J per sequence, 0.1 EUR to the target and 125 EUR per million sequences at 3.6 EUR "
        "per device-hour (a list)."
    )
    for page in (html, text):
        assert "12.5 J per sequence" in page(report(tmp_path, PRICES)).replace("\\", "")


def test_without_a_target_the_rate_decides(tmp_path: Path) -> None:
    for name, rate in (("Card 1", 5.0), ("Card 2", 20.0)):
        make_run(tmp_path, {"sequences_per_second": rate}, devices=[device(name=name)],
                 system=name.lower())  # fmt: skip
    table = ranking(tmp_path)
    assert column(table, "Device") == ["1 x Card 2", "1 x Card 1"]
    assert column(table, "Speed") == ["1", "0.25"]
    assert "J/sequence" not in [c.name for c in table.columns]
    assert "Cost to target" not in [c.name for c in table.columns]


def test_doubts_stand_beside_the_number(tmp_path: Path) -> None:
    made(tmp_path, "Card 1", FAST)
    made(tmp_path, "Card 1", [300.0], status="failed")
    made(tmp_path, "Card 2", [120.0], precision="fp32", dirty=True)
    made(tmp_path, "Card 3", [v + 1 for v in FAST])
    quality = QUALITY | {"value": 0.4, "reached": False}
    make_run(tmp_path, {"sequences_per_second": 99.0}, quality=quality, status="below_quality",
             devices=[device(name="Card 4")], system="card-4")  # fmt: skip
    table = ranking(tmp_path)
    doubts = dict(zip(column(table, "Device"), column(table, "Doubts"), strict=True))
    assert doubts == {
        "1 x Card 1": "unstable: 6 of 7 runs ended well; 6 seeds",
        "1 x Card 3": "perhaps as fast as the fastest",
        "1 x Card 2": "1 run: no interval; fp32, the fastest bf16; uncommitted changes",
        "1 x Card 4": "missed the target; 1 run: no interval; unstable: 0 of 1 runs ended well",
    }
    assert column(table, "Rank") == ["1", "2", "3", ""]
    assert "Doubts: 1 x Card 1 (bf16): unstable" in report(tmp_path).sections[0].text


def test_workloads_are_never_compared(tmp_path: Path) -> None:
    made(tmp_path, "Card 1", FAST)
    made(tmp_path, "Card 2", SLOW, recipe_hash="0" * 16)
    for seed in range(2):
        make_run(tmp_path, {"time_to_target_s": 1.0}, seed=seed, devices=[device(name="Card 3")],
                 quality=QUALITY | {"target": 0.1})  # fmt: skip
    places = ranked(report(tmp_path).real, {})
    assert [len(some) for some in places] == [1, 1, 1]
    assert "the fastest" not in paragraph(places) and "is the only configuration" in paragraph(
        places
    )
    table = ranking(tmp_path)
    assert len(table.rows) == 2, "no energy, no cost, nothing to rank: left out"
    assert "Rank" not in [c.name for c in table.columns]


def test_simulated_devices_are_ranked_apart(tmp_path: Path) -> None:
    made(tmp_path, "Card 1", SLOW)
    for seed in range(2):
        make_run(tmp_path, {"time_to_target_s": 1.0}, seed=seed, quality=QUALITY,
                 devices=[device(name="Played", simulated=True)])  # fmt: skip
    found = {t.id: t for s in report(tmp_path).sections for t in s.tables}
    assert column(found["ranking"], "Device") == ["1 x Card 1"]
    assert column(found["simulated-ranking"], "Doubts") == ["simulated: no result; 2 runs: no "
                                                            "interval"]  # fmt: skip


# -- prices ----------------------------------------------------------------------------------


GOOD = """# prices
[[price]]
device = 'Card [12]'
per_device_hour = 2.5
currency = "EUR"
source = "a list"

[[price]]
device = 'Card 3'
buy = 8766
years = 2
currency = "EUR"
source = "a shop"
"""
LINES = """device,per_device_hour,buy,years,currency,source
Card [12],2.5,,,EUR,a list
Card 3,,8766,2,EUR,a shop
"""


@pytest.mark.parametrize(("name", "content"), [("p.toml", GOOD), ("p.csv", LINES)])
def test_prices_by_the_hour_and_to_buy(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    hired, bought = load(file)
    assert (hired.device, hired.per_device_hour, hired.source) == ("Card [12]", 2.5, "a list")
    assert bought.per_device_hour == pytest.approx(8766 / (2 * HOURS_OF_A_YEAR)) == 0.5
    assert by_device([hired, bought], ["Card 2", "card 3", "Card 4"]) == {
        "Card 2": hired, "card 3": bought,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("p.toml", GOOD.replace("2.5", "-1"), r"p\.toml, line 2: per_device_hour must be a number"),
        ("p.toml", GOOD.replace("years = 2\n", ""), r"p\.toml, line 8: must have exactly"),
        ("p.toml", GOOD.replace("Card [12]", "Card ["), r"line 2: device is no regular expression"),
        ("p.toml", GOOD.replace('"a shop"', "7"), r"line 8: source must be a text"),
        ("p.toml", GOOD.replace("= 2.5", "= = 2.5"), r"cannot be read: .*line 4"),
        ("p.toml", "[peak]\n", r"only \[\[price\]\] tables"),
        ("p.csv", LINES.replace("2.5", "free"), r"p\.csv, line 2: per_device_hour must be"),
        ("p.csv", LINES.replace("8766,2", "8766,"), r"p\.csv, line 3: must have exactly"),
        ("p.csv", LINES.replace(",a shop", ""), r"p\.csv, line 3: has not as many values"),
        ("p.csv", LINES.splitlines()[0], "has no price"),
        ("none.toml", None, r"none\.toml: cannot be read"),
    ],
)
def test_wrong_prices_name_the_line(
    tmp_path: Path, name: str, content: str | None, wanted: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=wanted):
        load(tmp_path / name)


def test_a_price_for_nothing_or_twice_is_refused() -> None:
    one, other = (Price(d, 1.0, "EUR", "s", f"p, line {i}") for i, d in ((1, "Card.*"), (2, "C.*")))
    with pytest.raises(BadInput, match="line 1 and p, line 2: both are prices of Card 7"):
        by_device([one, other], ["Card 7"])
    with pytest.raises(BadInput, match=r"line 1: no price is for a device of this report \(Disk\)"):
        by_device([one], ["Disk"])
    exact = Price("Card 7", 2.0, "EUR", "s", "p, line 3")
    assert by_device([one, other, exact], ["Card 7"]) == {"Card 7": exact}


def test_the_verb_takes_a_file_of_prices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "results", "Card 1", FAST)
    (tmp_path / "p.toml").write_text(GOOD)
    words = [str(tmp_path / "results"), "--out", str(tmp_path / "o"), "--no_references"]
    assert main([*words, "--price", str(tmp_path / "p.toml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == 6
    page = (tmp_path / "o" / "report.html").read_text()
    assert "0.0694 EUR to the target" in page and "(a list)" in page
    (tmp_path / "p.toml").write_text(GOOD.replace("2.5", "0"))
    with pytest.raises(BadInput, match="line 2: per_device_hour must be a number above 0"):
        main([*words, "--price", str(tmp_path / "p.toml")])
