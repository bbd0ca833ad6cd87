"""Training program for DeepSpeed's launcher: ``deepspeed launch/train.py --config configs/fold/tiny_cpu.toml``."""

from ds4sci.train.__main__ import exit_process, main

if __name__ == "__main__":
    exit_process(main())
