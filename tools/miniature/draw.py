"""Figures by gnuplot, SVG and PNG, from the CSV files of a folder alone."""

import glob
import os
import shutil
import subprocess

import table

FIGURES = os.path.join(table.HERE, "figures")
WIDE = {"overlap": (1100, 520), "warmup": (1200, 800), "capacity": (1200, 480),
        "bias": (1200, 480), "kinds": (1100, 800), "passages": (1100, 560),
        "rules": (1100, 480)}
TERMINALS = {"svg": 'svg size {},{} font "sans,14" background rgb "white"',
             "png": 'pngcairo size {},{} font "sans,12"'}


def figure_files():
    return [path for path in sorted(glob.glob(os.path.join(FIGURES, "*.gp")))
            if not path.endswith("common.gp")]


def draw(folder):
    """Returns what could not be drawn, by name, with gnuplot's words; None without gnuplot."""
    if shutil.which("gnuplot") is None:
        return None
    failed = {}
    for path in figure_files():
        name = os.path.basename(path)[:-3]
        size = WIDE.get(name, (760, 540))
        for kind, terminal in TERMINALS.items():
            output = f"{name}.{kind}"
            begin = f"set terminal {terminal.format(*size)}; set output '{output}'"
            done = subprocess.run(
                ["gnuplot", "-e", begin, os.path.join(FIGURES, "common.gp"), path], cwd=folder,
                stderr=subprocess.PIPE, text=True, check=False)
            drawn = os.path.join(folder, output)
            if done.returncode != 0:
                failed[name] = done.stderr.strip().split("\n")[-1]
                if os.path.exists(drawn):
                    os.remove(drawn)
    return failed
