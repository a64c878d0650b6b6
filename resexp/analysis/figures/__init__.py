"""The figures of an experiment: what each shows is computed once, as a Chart, and drawn once."""

#: By name the function, as module:function, that makes a Chart of runs: it imports matplotlib.
FIGURES = {
    "curves": "resexp.analysis.figures.curves:curves",
    "depth": "resexp.analysis.figures.depth:depth",
    "difference": "resexp.analysis.figures.depth:difference",
    "seeds": "resexp.analysis.figures.seeds:seeds",
    "families": "resexp.analysis.figures.curves:families",
    "surface": "resexp.analysis.figures.surface:surface",
}
