"""``python -m wwts_ops.cli``: the same as `wwts`."""

from wwts_ops.cli import main

if __name__ == "__main__":
    main()
