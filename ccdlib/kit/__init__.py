"""The kit around the library: what a notebook holds, how notebooks are executed, batches, and the verdict page.

    analysis.py  Analysis    parameters.py, door.py  papermill, strictly    planning.py  what a notebook would train
    batch.py, jobs.py, engine.py, outlook.py, plugins/  everything of a profile, by Snakemake    verdicts.py, clean.py
    finished.py  which executed notebooks are found again    answers.py  judged claims in words    measures.py  of networks
    ledger.py, pages.py  ours beside what was published, and pages with a part that a command writes
    recorded.py, recheck.py, power.py  results from records, records checked by training, and how many seeds a claim needs

It may import analyses, evidence, training and what is below.
"""
