"""The effects behind `data_synth.artefacts`: one pure function an artefact, each imitating one failure of SR models.

Images are H×W×3 float32 RGB in [0, 1]; results have the same shape and may leave [0, 1] (`apply_artefact` clips). Lengths
are in px, amplitudes in units of [0, 1] intensity. Nothing here draws parameters; a ``seed`` only fixes noise.
"""
