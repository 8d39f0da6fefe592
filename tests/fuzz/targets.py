"""All targets; every reader of the package is under one of them.

==========================================  ==============================
reader                                      target
==========================================  ==============================
``_configfile.read_config_file``            config-toml, config-json, preset, request
``_configfile.parse_override``              overrides
``_strict.read_strict``                     all of these
``_textfile.read_utf8``                     all of these and the graphs
``topology._graph_file.read_graph``         graphml, gml, edges
``store.files.from_safetensors``            safetensors, run
``store.folder`` (JSON, text, results)      results, run
``accounting.ledger.PrivacyLedger.load``    ledger, run
``accounting.certificate.from_json``        certificate, run
``evaluation.audit_result.from_json``       audit, run
``engine.stored.read_run``, ``read_state``  run
``engine.stored.read_personal``             run
``engine.stored_influence``                 run
``engine.checkpoint``, ``engine.resuming``  resume
``unlearning.store.load_outcomes``          run
``results.ledgers.RunLedgers``              run, cli
``store.inputs.read_arrays``, ``arrays``    npz, npy, tensors
``data.parquet.read_images``                parquet
``data.vision`` (MNIST, CIFAR-10)           mnist, cifar
``cli`` (arguments)                         cli
``sweeps.load_sweep``, ``Sweep.cases``      sweep
==========================================  ==============================
"""

from fuzz import (
    cli_target,
    data_targets,
    folder_targets,
    stored_targets,
    sweep_target,
    text_targets,
)

TARGETS = {
    target.name: target
    for module in (
        text_targets,
        sweep_target,
        stored_targets,
        folder_targets,
        data_targets,
        cli_target,
    )
    for target in module.TARGETS
}


def shares(n: int, names: list[str]) -> dict[str, int]:
    """Split ``n`` inputs over targets by their shares, at least one each."""
    total = sum(TARGETS[name].share for name in names)
    return {name: max(1, round(n * TARGETS[name].share / total)) for name in names}
