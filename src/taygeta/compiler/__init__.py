"""Graph -> Program: tiling, placement in SRAM, double buffering, semaphores; the program's text and its verifier."""
