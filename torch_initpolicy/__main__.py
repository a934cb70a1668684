"""Makes `python -m torch_initpolicy` the command `torch-initpolicy`."""

from torch_initpolicy.cli import main

if __name__ == "__main__":
    main()
