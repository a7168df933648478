#!/usr/bin/env python3
"""Writes country_intensity.csv: yearly lifecycle grid intensity by country.

Source: the table that PyPI's codecarbon 3.2.9 ships (MIT; figures of Our World in Data
after Ember and the Energy Institute, CC BY 4.0). Usage:

    pip download --no-deps --dest DIR codecarbon==3.2.9
    python3 src/carbon/data/generate.py DIR/codecarbon-3.2.9-py3-none-any.whl
"""
import csv
import json
import pathlib
import sys
import zipfile

TABLE = "codecarbon/data/private_infra/global_energy_mix.json"


def main():
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        mix = json.loads(wheel.read(TABLE))
    out = pathlib.Path(__file__).with_name("country_intensity.csv")
    with out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["iso3", "name", "year", "grams_per_kwh"])
        for code, row in sorted(mix.items()):
            grams = row.get("carbon_intensity") or 0
            # A value of zero or less means missing.
            if len(code) == 3 and grams > 0:
                writer.writerow([code, row["country_name"], row["year"], grams])


if __name__ == "__main__":
    main()
