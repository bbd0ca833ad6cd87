"""What ``deepspeed`` starts: ``deepspeed --num_accelerators 2 launch/train.py --config configs/fold/tiny_cpu.toml``."""

from ds4sci.train.__main__ import exit_process, main

if __name__ == "__main__":
    exit_process(main())
