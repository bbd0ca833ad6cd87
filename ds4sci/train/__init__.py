"""Training on DeepSpeed: one loop for every task, exact resume, checkpoints that are complete or absent.

``run`` puts the pieces together · ``engine`` is the one place that calls ``deepspeed.initialize`` · ``loop`` trains ·
``checkpoint`` saves and restores · ``ema`` keeps the weights' running mean · ``metrics`` writes ``metrics.jsonl`` and
shows progress · ``signals`` stops a run in order · ``jit`` builds DeepSpeed's extensions once · ``launch`` starts the
ranks. Importing this package imports neither torch nor deepspeed.
"""
