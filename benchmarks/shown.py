"""What the page shows of each benchmark's figures: tables and plots, made from the record alone.

A view takes the record in ``results/NAME.json`` and yields tables and plots; records without a view are shown as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from matplotlib.axes import Axes

from benchmarks.tables import FAINT, INK, SOFT, Cell, Picture, Record, Table, bars, cell, plus_minus, rows_of

View = Callable[[Record], Iterator[Table | Picture]]

# -- the reward model -------------------------------------------------------------------------------------------------


def _rm_speed(record: Record) -> Iterator[Table | Picture]:
    seconds = record["comparison_512"]["seconds_per_512_image"]
    rungs = record["comparison_512"]["rungs"]
    yield bars(list(seconds), [1000 * value for value in seconds.values()], label="ms for one 512² image (log scale)", log=True)
    rows = []
    for name, value in seconds.items():
        faster = [rungs[rung]["times_faster_than"].get(name) for rung in rungs]
        gradient = rungs[name]["gradient_over_forward"] if name in rungs else None
        rows.append([name, 1000 * value, *(None if one is None else f"{one:.1f}×" for one in faster), gradient])
    yield Table(("one 512² image", "ms", *(f"{rung} is faster by" for rung in rungs), "gradient ÷ forward"), rows)
    found: dict[tuple[str, str, int], dict[str, Record]] = {}
    for line in record["lines"]:
        found.setdefault((line["rung"], f"{line['width']} × {line['height']}", line["batch"]), {})[line["precision"]] = line
    kinds = list(dict.fromkeys(line["precision"] for line in record["lines"]))
    rows = []
    for (rung, size, batch), by_kind in found.items():
        rates = [1 / by_kind[kind]["seconds"] if kind in by_kind else None for kind in kinds]
        rows.append([rung, size, batch or "1, in tiles", *rates, by_kind["fp32"]["peak_mib"] if "fp32" in by_kind else None])
    yield Table(("rung", "px", "batch", *(f"images/s, {kind}" for kind in kinds), "memory above the model, fp32, MiB"), rows)


def _rm_precision(record: Record) -> Iterator[Table | Picture]:
    keys = ("score_max", "score_mean", "map_max", "map_mean", "pairs_flipped")
    rows = [
        [rung, kind, *(found.get(key) for key in keys)]
        for rung, kinds in record["rungs"].items()
        for kind, found in kinds.items()
    ]
    columns = ("score, largest", "score, mean", "map, largest", "map, mean", f"pairs flipped, of {record['pairs']}")
    yield Table(("rung", "run as", *columns), rows, "Differences from float32.")


def _rm_severity(record: Record) -> Iterator[Table | Picture]:
    kinds = record["kinds"]

    def draw(axes: Axes) -> None:
        places = np.arange(len(kinds))[::-1]
        for key, colour, label in (("map_mean", INK, "map"), ("score_mean", FAINT, "score")):
            axes.plot([found["patch"][key] for found in kinds.values()], places, "o", color=colour, label=label, markersize=4)
        axes.set_yticks(places, kinds, fontsize=7)
        axes.set(xlabel="Spearman's ρ with severity, artefact in a patch of a tenth", xlim=(-1.05, 1.05))
        axes.axvline(0, color="black", linewidth=0.6)
        axes.legend(frameon=False, fontsize=8)

    yield Picture("ρ of severity with map and score, for each artefact", draw, (6.4, 4.6))
    ways = list(next(iter(kinds.values())))
    rows = [[kind, *(one[key] for one in found.values() for key in ("score_mean", "map_mean"))] for kind, found in kinds.items()]
    columns = ("artefact", *(f"{way}: {name}" for way in ways for name in ("score", "map")))
    yield Table(columns, rows, f"Means over {record['photos']} photos.")


def _rm_calibration(record: Record) -> Iterator[Table | Picture]:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="black", linewidth=0.6)
        styles = {"score": "o--", "map": "D-"}
        for colour, (rung, found) in zip((FAINT, SOFT, INK), record["rungs"].items(), strict=False):
            for name, curve in found["curves"].items():
                if name in styles:
                    said, true = [one["predicted"] for one in curve], [one["actual"] for one in curve]
                    axes.plot(said, true, styles[name], color=colour, label=f"{rung}, {name}", markersize=4)
        axes.set(xlabel="what it says", ylabel="what is true", xlim=(0, 1), ylim=(0, 1))
        axes.legend(frameon=False, fontsize=7)

    yield Picture("Reliability of each rung's score and map", draw, (5.0, 3.8))
    rows = []
    for rung, found in record["rungs"].items():
        trained = found["ece"]["as trained"]
        rows += [[rung, name, trained[name], error] for name, error in found["ece"]["calibrated"].items()]
    yield Table(("rung", "number", "ECE as trained", "ECE calibrated"), rows, f"{record['samples']} samples.")


def _score_heads(record: Record) -> Iterator[Table | Picture]:
    areas = list(record["counts"])

    def draw(axes: Axes) -> None:
        places = np.arange(len(record["forms"]))[::-1]
        means = [found["all"]["mean"] for found in record["forms"].values()]
        reach = [found["all"]["std"] for found in record["forms"].values()]
        axes.errorbar(means, places, xerr=reach, fmt="o", color=INK, capsize=3)
        axes.set_yticks(places, record["forms"], fontsize=8)
        axes.set(xlabel=f"share of triplets in order, mean ± standard deviation of {record['seeds']} seeds")

    yield Picture("Share of triplets in order, by form of the score head", draw)
    rows = [[form, *(plus_minus(found[a]["mean"], found[a]["std"]) for a in areas)] for form, found in record["forms"].items()]
    yield Table(("form", *(f"{area} (n = {record['counts'][area]})" for area in areas)), rows)


def _judges(judges: Record) -> Table:
    rows = []
    for name, found in judges.items():
        seen = found["map"] or {}
        order = found["ranking"]
        rows.append(
            [
                _judge(name),
                seen.get("paired_auroc"),
                seen.get("clean_mean"),
                order["triplet"],
                order["gt_over_syn"],
                found["samples"],
            ]
        )
    return Table(("judge", "map AUROC, paired", "map on gt", "gt > syn > sr", "gt > syn", "samples"), rows)


def _judge(name: str) -> str:
    return {"laplacian": "texture energy", "consistency": "disagreement with the LR picture"}.get(name, name)


def _unseen_faults(record: Record) -> Iterator[Table | Picture]:
    judges = record["judges"]
    finest = [name for name in judges if name.startswith("RM_") and "+" not in name][-1]
    shown = {name: judges[name]["by"]["family"] for name in (finest, "laplacian") if name in judges}
    kinds = list(shown[finest])

    def draw(axes: Axes) -> None:
        places = np.arange(len(kinds))[::-1]
        for (name, found), colour in zip(shown.items(), (INK, FAINT), strict=False):
            values = [found[kind]["map"]["paired_auroc"] for kind in kinds]
            axes.plot(values, places, "o", color=colour, label=_judge(name))
        axes.set_yticks(places, kinds, fontsize=8)
        axes.set(xlabel="map AUROC, paired (0.5 is blind)", xlim=(0, 1.02))
        axes.axvline(0.5, color="black", linewidth=0.6)
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)

    yield Picture(f"Paired AUROC of {finest}'s map by kind of fault", draw, (6.4, 3.6))
    yield _judges(judges)
    rows = [
        [kind, record["relatives"].get(kind), found["map"]["paired_auroc"], found["ranking"]["triplet"], found["samples"]]
        for kind, found in shown[finest].items()
    ]
    yield Table(
        ("fault", "relative in training", "map AUROC, paired", "gt > syn > sr", "samples"), rows, f"{finest}, fault by fault."
    )


def _loss_weights(record: Record) -> Iterator[Table | Picture]:
    rows = record["rows"]
    seeds = len(next(iter(next(iter(rows.values())).values())))
    names = list(next(iter(rows.values())))
    shown: list[list[Cell]] = [
        [row, *(plus_minus(float(np.mean(found[name])), float(np.std(found[name], ddof=1))) for name in names)]
        for row, found in rows.items()
    ]
    trained = f"{record['steps']} steps of {record['batch_size']} triplets, {record['trained_on']:,} samples"
    about = f"{trained}; {record['tested_on']} test samples; mean ± standard deviation over {seeds} seeds."
    yield Table(("changed", *names), shown, about)


def _held_out_families(record: Record) -> Iterator[Table | Picture]:
    for fold, found in record["folds"].items():
        table = _judges(found["judges"])
        steps = ", ".join(map(str, found["steps"]))
        about = f"Fold `{fold}`: without {', '.join(found['families'])}; {found['trained_on']:,} samples, {steps} steps."
        yield Table(table.columns, table.rows, about)


# -- the dataset ------------------------------------------------------------------------------------------------------


def _ground_truth_sanity(record: Record) -> Iterator[Table | Picture]:
    kinds = record["kinds"]
    medians = {key: float(np.median([found[key] for found in kinds.values()])) for key in ("severity_mean", "vsi", "fsim")}
    rows: list[list[Cell]] = [[f"median of {len(kinds)} artefacts", *medians.values()]]
    rows += [[kind, *(found[key] for key in medians)] for kind, found in kinds.items()]
    columns = ("artefact", "ρ, severity and map", "ρ, map and loss in VSI", "ρ, map and loss in FSIM")
    yield Table(columns, rows, f"{record['photos']} photos; identical images give at most {cell(record['identical_max'])}.")


def _synth_speed(record: Record) -> Iterator[Table | Picture]:
    steps = record["milliseconds_a_sample"]
    yield bars(list(steps), list(steps.values()), label="ms a sample, one process")
    two = record["two_processes"]
    memory = [resident for _, resident in record["resident_mib"]]
    yield Table(
        ("figure", "value"),
        [
            ["samples a second, one process", record["samples_a_second_one_process"]],
            ["two processes, their start counted", two["samples_a_second"]],
            ["two processes, started", two["samples_a_second_after_start"]],
            ["what the driver adds to the steps, %", 100 * record["driver_overhead"]],
            [f"resident memory over {record['resident_mib'][-1][0]:,} samples, MiB", f"{min(memory):,.0f} to {max(memory):,.0f}"],
        ],
    )


# -- the server -------------------------------------------------------------------------------------------------------


def _serving(record: Record) -> Iterator[Table | Picture]:
    lines = record["lines"]
    for side in dict.fromkeys(line["side"] for line in lines):
        rates = {
            line["line"]: line["images_per_second"] for line in lines if line["side"] == side and "images_per_second" in line
        }
        yield bars(list(rates), list(rates.values()), label=f"images a second, {side}²")
    yield rows_of(lines)


def _cluster(record: Record) -> Iterator[Table | Picture]:
    lines = record["lines"]
    yield bars([line["line"] for line in lines], [line["images_per_second"] for line in lines], label="images a second")
    yield rows_of(lines)


def _server_fuzz(record: Record) -> Iterator[Table | Picture]:
    codes = sorted({code for found in record["statuses"].values() for code in found})
    yield Table(
        ("damaged", *codes),
        [[kind, *(found.get(code, 0) for code in codes)] for kind, found in record["statuses"].items()],
        f"{record['bodies']:,} bodies in {record['seconds']:.0f} s, {len(record['faults'])} faults; memory "
        f"{' → '.join(f'{mib:,.0f}' for mib in record['rss_mib'])} MiB; afterwards a good picture's score is "
        f"{'the same' if record['same_score'] else 'another'}.",
    )


# -- fine-tuning ------------------------------------------------------------------------------------------------------


def _finetune_step(record: Record) -> Iterator[Table | Picture]:
    found: dict[str, dict[str, Record]] = {}
    for line in record["rows"]:
        found.setdefault(line["algorithm"], {})[line["reward"]] = line
    places = list(dict.fromkeys(line["reward"] for line in record["rows"]))

    def draw(axes: Axes) -> None:
        width = 0.8 / len(places)
        for number, (place, colour) in enumerate(zip(places, (FAINT, INK, SOFT), strict=False)):
            values = [by_place[place]["step_s"] if place in by_place else 0.0 for by_place in found.values()]
            axes.bar(np.arange(len(found)) + number * width, values, width, label=place, color=colour)
        axes.set_xticks(np.arange(len(found)) + width * (len(places) - 1) / 2, found, fontsize=8, rotation=20)
        axes.set(ylabel="seconds a step")
        axes.legend(frameon=False, fontsize=8)

    yield Picture("Seconds a step of each algorithm", draw)
    rows = [
        [line["algorithm"], line["reward"], line["step_s"], 100 * line["waiting"], line["peak_mib"]] for line in record["rows"]
    ]
    yield Table(("algorithm", "reward", "step, s (median)", "waiting for it, %", "peak, MiB"), rows)


def _policy_steps(record: Record) -> Iterator[Table | Picture]:
    found: dict[str, dict[str, Record]] = {}
    for line in record["rows"]:
        how = f"{line['policy']}, {'LoRA' if line['lora_rank'] else 'whole'}"
        found.setdefault(line["algorithm"], {})[how] = line
    columns = list(dict.fromkeys(how for by_how in found.values() for how in by_how))
    rows = [[name, *(by_how[how]["step_s"] if how in by_how else None for how in columns)] for name, by_how in found.items()]
    finite = all(line["finite"] for line in record["rows"])
    yield Table(
        ("seconds a step (median)", *columns), rows, f"{'Every' if finite else 'Not every'} loss, gradient and weight was finite."
    )


def _policy_memory(record: Record) -> Iterator[Table | Picture]:
    keys = ("parameters", "trained", "weights", "gradients_and_moments", "reference", "total")
    rows = [[name, *(found[key] for key in keys)] for name, found in record["lines"].items()]
    yield Table(
        ("policy", "parameters, M", "trained, M", "weights, GB", "gradients, moments, GB", "reference, GB", "all, GB"), rows
    )


def _credit_toy(record: Record) -> Iterator[Table | Picture]:
    found: dict[str, list[Record]] = {}
    for line in record["rows"]:
        found.setdefault(line["credit"], []).append(line)

    def draw(axes: Axes) -> None:
        for (credit, lines), colour in zip(found.items(), ("#555555", INK, SOFT), strict=False):
            reach = [line["interval"] for line in lines]
            samples, left = [line["samples"] for line in lines], [line["left"] for line in lines]
            axes.errorbar(samples, left, yerr=reach, fmt="o-", label=credit, capsize=3, color=colour)
        axes.set(yscale="log", xlabel="samples", ylabel="distance left, share")
        axes.legend(frameon=False, fontsize=8)

    yield Picture("Squared distance left to the optimum after a number of samples", draw)
    counts = list(dict.fromkeys(line["samples"] for line in record["rows"]))
    rows = [[credit, *(plus_minus(line["left"], line["interval"]) for line in lines)] for credit, lines in found.items()]
    seeds = record["settings"]["seeds"]
    yield Table(("credit", *(f"{count} samples" for count in counts)), rows, f"Mean of {seeds} seeds, 95 % interval.")


def _credit_tiny(record: Record) -> Iterator[Table | Picture]:
    rows = []
    for line in record["rows"]:
        gain = plus_minus(line["gain"], line["gain interval"]) if line["map_weight"] else None
        rows.append([line["reward"], line["map_weight"], plus_minus(line["cosine"], line["interval"]), gain])
    yield Table(("gradient of", "weight of the map", "cosine", "gain over weight 0"), rows, "Means, 95 % intervals.")


VIEWS: Mapping[str, View] = {
    "rm_speed": _rm_speed,
    "rm_precision": _rm_precision,
    "rm_severity": _rm_severity,
    "rm_calibration": _rm_calibration,
    "score_heads": _score_heads,
    "unseen_faults": _unseen_faults,
    "loss_weights": _loss_weights,
    "held_out_families": _held_out_families,
    "ground_truth_sanity": _ground_truth_sanity,
    "synth_speed": _synth_speed,
    "serving": _serving,
    "cluster": _cluster,
    "server_fuzz": _server_fuzz,
    "finetune_step": _finetune_step,
    "policy_steps": _policy_steps,
    "policy_memory": _policy_memory,
    "credit_assignment_toy": _credit_toy,
    "credit_assignment_tiny": _credit_tiny,
}
"""By the record's name. All others are shown `as_it_is`."""
