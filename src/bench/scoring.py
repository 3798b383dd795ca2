"""Scenes per second of `src.inference_fast`, from stored pictures to its report, against the published way.

A small encoder-decoder LVSM with random weights at 224 pixels, 2 inputs and 3 targets; PSNR, SSIM and LPIPS with a trunk of
random weights, all in float32. One row for the renders alone and one for the default of `src.inference_fast`, which scores what
anybody gets from the inputs as well; both sides do the same.

Public: measure.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch

from ..config import build
from ..data.convert import Options, convert
from ..data.eval_index import evaluation_loader
from ..evaluate import evaluate
from ..inference_fast import Session, write_report
from ..metrics import build_metrics
from ..model import family_config
from ..model.base import ViewSynthesizer
from ..runtime import Runtime
from ..settings import Inference, Pretrained, RunConfig
from .measure import build_section
from .published_data import PATCH, SIZE, convert_to_png, run_config
from .published_scoring import Scores, score_scenes
from .ratio import Place, Row, ratio_row, take_turns

MODEL = {
    "class_name": "model.LVSM_scene_encoder_decoder.Images2LatentScene",
    "image_tokenizer": {"image_size": SIZE, "patch_size": PATCH},
    "target_pose_tokenizer": {"patch_size": PATCH},
    "transformer": {
        "d": 256,
        "d_head": 64,
        "encoder_n_layer": 3,
        "decoder_n_layer": 3,
        "n_latent_vectors": 256,
        "use_qk_norm": True,
    },
}
TARGETS = 3
"""Of a scene."""

TARGET = 2.0
CLOSE = {"psnr": 1e-3, "ssim": 1e-5, "lpips": 1e-5}
"""Largest difference of an image's score: dB, and 1."""


def measure(place: Place) -> list[Row]:
    """Without and with the floors."""
    torch.manual_seed(0)
    convert_to_png(place.chunks, place.work / "png")
    convert(Options(place.chunks, place.work / "ours"), num_processes=1, chunk_size=1)
    model = build_section(MODEL)
    return [
        _row("`inference_fast`, `floors: false`", place, model, scenes=3, floors=False),
        _row("`inference_fast`", place, model, scenes=1, floors=True),
    ]


def _index(png: Path, scenes: int) -> dict[str, dict]:
    """The first scenes that are long enough; targets lie between the inputs."""
    index = {}
    for path in sorted((png / "metadata").glob("*.json")):
        last = len(json.loads(path.read_text())["frames"]) - 1
        if last > TARGETS:
            targets = [last * (number + 1) // (TARGETS + 1) for number in range(TARGETS)]
            index[path.stem] = {"context": [0, last], "target": targets}
    return dict(list(index.items())[:scenes])


def _session(work: Path, model: ViewSynthesizer, index: dict[str, dict], floors: bool) -> Session:
    """As `src.inference_fast` opens it, in one process."""
    scores = work / ("floors" if floors else "renders")
    scores.mkdir()
    (scores / "index.json").write_text(json.dumps(index))
    inference = Inference(
        view_idx_file_path=str(scores / "index.json"), inference_out_dir=str(scores), floors=floors
    )
    training = run_config(work / "ours" / "full_list.txt").training
    training = replace(training, use_amp=False, num_workers=0, batch_size_per_gpu=4)
    sizes = build(family_config(MODEL["class_name"]), MODEL, "model", [])
    config = RunConfig(model=sizes, training=training, inference=inference)
    metrics = build_metrics(inference.metrics, Pretrained(vgg16="random"), torch.device("cpu"))
    loader = evaluation_loader(config, training.dataset_path, rank=0, world=1)
    return Session(config, Runtime(), model, loader, metrics, {"path": "random", "digest": ""})


def _row(what: str, place: Place, model: ViewSynthesizer, *, scenes: int, floors: bool) -> Row:
    png = place.work / "png"
    index = _index(png, scenes)
    session = _session(place.work, model, index, floors)
    network = session.metrics["lpips"].network
    results: dict[str, dict] = {}

    def reference() -> None:
        results["reference"] = score_scenes(model, network, png, index, place.work, floors=floors)

    def ours() -> None:
        report = evaluate(model, session.loader, session.config, session.runtime, metrics=session.metrics)
        with redirect_stdout(io.StringIO()):
            results["ours"] = write_report(session, report)

    turns = take_turns(what, reference, ours, place.rounds)
    return ratio_row(what, turns, 60 * len(index), "scenes/min", TARGET, _verdict(**results))


def _verdict(reference: dict[str, dict[str, Scores]], ours: dict) -> str:
    """What the scores of all renders, and the means of the floors of each scene, say to each other."""
    furthest = dict.fromkeys(CLOSE, 0.0)
    if [scene["scene"] for scene in ours["scenes"]] != list(reference):
        return ""
    for scene in ours["scenes"]:
        for method, scores in reference[scene["scene"]].items():
            for metric, values in scores.items():
                mean = [sum(values) / len(values)]
                pairs = zip(values, scene["per_view"][metric])
                if method != "render":
                    pairs = zip(mean, [scene["floors"][method][metric]])
                furthest[metric] = max(furthest[metric], *(abs(a - b) for a, b in pairs))
    if any(furthest[metric] > CLOSE[metric] for metric in CLOSE):
        return ""
    return ", ".join(f"{metric.upper()} within {furthest[metric]:.0e}" for metric in CLOSE)
