"""CSV files of a folder: written whole, and filled by several machines."""

import csv
import os

import rows


class Folder:
    """Where the files go; `kept`: runs whose lines are there already and stay."""

    def __init__(self, path, kept):
        self.path, self.kept = path, kept

    def lines_that_stay(self, name):
        path = os.path.join(self.path, name)
        if not self.kept or not os.path.exists(path):
            return []
        with open(path, newline="", encoding="utf-8") as file:
            return [list(line.values()) for line in csv.DictReader(file)
                    if f"{line['variant']}-{line.get('seed', 0)}" in self.kept]


class Out:
    """A CSV file of the folder, whole or not at all: what stays of the last one comes first."""

    def __init__(self, folder, name, fields):
        self.path = os.path.join(folder.path, name)
        stays = folder.lines_that_stay(name) if "variant" in fields else []
        self.file = open(self.path + ".part", "w", newline="", encoding="utf-8")
        self.csv = csv.writer(self.file, lineterminator="\n")
        self.csv.writerow(fields)
        self.csv.writerows(stays)

    def row(self, *values):
        self.csv.writerow([rows.shown(value) for value in values])

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        self.file.close()
        if failed is None:
            os.replace(self.path + ".part", self.path)
        else:
            os.remove(self.path + ".part")
