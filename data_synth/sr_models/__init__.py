"""I_SR: the protocol an SR model serves a build through, and what serves it.

    protocol.py          SRModel, SRCall, ranges of settings
    sources.py           `--sr` specifications → models
    checkpoint.py        any community checkpoint, through spandrel
    pipelines.py         diffusers pipelines (which files make one: pipeline_files.py)
    ready_outputs.py     a folder of finished SR pictures, paired by file name
    perturbed.py         any network here, broken on purpose (network_faults.py, input_faults.py)
    random_networks.py   networks that never learnt
    low_band.py          what they have no business to change

The packaged diffusion SR lives in `finpercep` and is handed in. The SR zoo is in `data_synth.zoo`.
"""
