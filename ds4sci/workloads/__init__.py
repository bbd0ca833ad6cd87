"""Workloads: whole trainings as benchmarks. A workload is a run file with a section ``[benchmark]``.

registry      the workloads of ds4sci, of installed packages and of folders, by name
verification  check of a workload before it is run
training      trainings of several seeds, one after another or at the same time
inference     speed and quality of a trained model
results       results of the runs in a folder
page          the report of a workload's runs
"""
