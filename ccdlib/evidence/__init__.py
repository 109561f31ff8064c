"""Evidence: claims and their statistics, published numbers, costs, a teacher's answers to views, and shared figures.

    estimands.py, stats.py  what claims are about; intervals, claims, verdicts    published.py  numbers of papers
    records.py  what stays of runs without weights    cost.py  parameters, multiply-adds, time
    teacher_views.py  a teacher's answers to augmented images    sharpness.py  how flat the loss is around a network
    plots.py, relations.py, forest.py, found.py  a function for each figure

It may import training and what is below. (This door does not import plots, whose libraries take seconds to load.)
"""
