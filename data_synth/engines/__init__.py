"""Where shards are made: in this process, in several, or on many machines. The bytes are the same.

    protocol.py    Engine: jobs in, finished shards out; what it sees of makers and jobs
    processes.py   this machine: one process, or a pool of them
    ray_data.py    many machines, through Ray Data

Knows neither photos nor what a shard holds.
"""

from data_synth.engines.processes import ProcessEngine
from data_synth.engines.protocol import Engine, EngineError
from data_synth.engines.ray_data import RayEngine

__all__ = ["Engine", "EngineError", "ProcessEngine", "RayEngine"]
