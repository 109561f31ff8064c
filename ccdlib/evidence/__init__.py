"""Evidence: claims and their statistics, published numbers, costs, a teacher's answers to views, and shared figures.

    stats.py  intervals, claims, verdicts    published.py  numbers of papers    cost.py  parameters, multiply-adds, time
    teacher_views.py  a teacher's answers to augmented images    plots.py, relations.py  a function for each figure
    records.py  what stays of runs when their weights are gone    forest.py  all verdicts in one figure

It may import training and what is below. (This door does not import plots, whose libraries take seconds to load.)
"""
