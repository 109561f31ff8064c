"""Evidence: claims and their statistics, published numbers, costs, what a teacher makes of views, and shared figures.

    stats.py  intervals, claims, verdicts    published.py  numbers of papers    cost.py  parameters, multiply-adds, time
    teacher_views.py  a teacher's answers to augmented images    plots.py  one function a figure

It may import training and what is below. (plots is imported by those who draw: its libraries take seconds.)
"""
