"""Program -> values in the chip's formats; Program -> timeline on the chip's engines."""
