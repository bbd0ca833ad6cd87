"""Training on DeepSpeed: one loop for every task, exact resume, checkpoints that are complete or absent.

run               a rank's part in a run, from joining the other ranks to the last step
engine            DeepSpeed's engine; the only module that calls ``deepspeed.initialize``
loop              the training loop
checkpoint        saving and restoring checkpoints
ema               exponential moving average of the weights
metric_log        ``metrics.jsonl``, throughput and loss averages
progress          progress bar and messages of a run
signals           orderly stop on SIGINT, SIGTERM or loss of the launcher
extension_builds  builds of DeepSpeed's C++ extensions
deepspeed_schema  check of a DeepSpeed JSON against the keys that DeepSpeed reads
launch            start of the ranks through DeepSpeed's launcher

Importing this package imports neither torch nor deepspeed.
"""
