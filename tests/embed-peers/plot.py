"""Draws what `make bench-embed` measured.

Usage: plot.py FIGURES.json PICTURE.png
"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

figures, picture = sys.argv[1:]
with open(figures) as file:
    measured = json.load(file)
workloads = measured["texts_per_second"]
columns = 4
rows = -(-len(workloads) // columns)
canvas, places = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), layout="constrained")
for place in places.flat[len(workloads) :]:
    place.remove()
for place, (name, rates) in zip(places.flat, workloads.items()):
    engines = sorted(rates, key=lambda engine: (not engine.startswith("sextant"), engine))
    colours = ["tab:blue" if engine.startswith("sextant") else "silver" for engine in engines]
    bars = place.barh(engines, [rates[engine] for engine in engines], color=colours)
    place.bar_label(bars, fmt="%.0f", padding=3)
    place.invert_yaxis()
    place.margins(x=0.3)
    place.set_title(name, fontsize=10)
    place.set_xlabel("texts per second")
canvas.suptitle(f"Embedding on {measured['threads']} threads")
canvas.savefig(picture, dpi=100)
