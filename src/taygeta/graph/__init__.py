"""Graphs: operations on named axes, partition over ranks with the collectives that follow, memory."""
