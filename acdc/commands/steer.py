"""`acdc steer`: what a model writes, and how it does a task, with a direction added or nodes, edges, a circuit cut."""

import argparse
import json
from pathlib import Path
from typing import Any

from acdc.arguments import check_device, choose
from acdc.errors import AcdcError
from acdc.output_folder import write_file

from .loading import quiet_libraries, read_circuit, read_text
from .printing import say

HELP = "steer a model, or ablate parts of it, and compare what it writes and how it does a task before and after"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_generating(parser)
    parser.add_argument("--direction", type=Path, help="steer along this direction, a safetensors file")
    parser.add_argument("--from", dest="positive", type=Path, help="steer from --against's mean to this file's: a "
                        "prompt a line")
    parser.add_argument("--against", type=Path, help="the prompts that --from is compared with")
    parser.add_argument("--feature", help="steer along what a feature of a sparse coder writes: CODER:INDEX")
    parser.add_argument("--token", help="steer along the unembedding of this token, leading space included")
    parser.add_argument("--ablate", nargs="+", default=[], help="nodes, edges or one circuit to cut")
    parser.add_argument("--only", type=Path, help="cut everything but this circuit")
    parser.add_argument("--ablation", default="zero", help="what is cut carries: zero, or "
                        "mean_over_positions of --task")
    parser.add_argument("--at", help="the site to steer at, such as resid12 (default: the direction's)")
    parser.add_argument("--strength", type=float, help="how much is added, in units of the mean norm there")
    parser.add_argument("--clamp", type=float, help="instead, set the projection to this; 0 removes the direction")
    parser.add_argument("--absolute", action="store_true", help="strength and clamp are lengths, not in mean norms")
    parser.add_argument("--positions", default="all", help="all, prompt or last")
    parser.add_argument("--save", type=Path, help="write the direction to this safetensors file")
    parser.add_argument("--task", help="measure this task too, before and after")
    parser.add_argument("--metric", default="logit_difference", help="logit_difference, probability_difference, ...")
    parser.add_argument("--prompts", type=int, help="how many of the task's (default: 32)")
    parser.add_argument("--text", help="measure the loss on this text too, a file or python (Python's reference)")
    parser.add_argument("--out", "-o", type=Path, help="also write all of it to this JSON file")


def add_generating(parser: argparse.ArgumentParser) -> None:
    """What says which text is generated."""
    parser.add_argument("model", help="a packaged model, a hub name or a folder")
    parser.add_argument("--prompt", required=True, help="the text to continue")
    parser.add_argument("--tokens", type=int, default=40, help="how many to generate")
    parser.add_argument("--sample", type=float, default=0.0, help="temperature; 0: the likeliest token")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float64")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")


def run(arguments: argparse.Namespace) -> None:
    from acdc.intervention.generation import generate, generate_cut
    from acdc.intervention.interventions import POSITIONS
    from acdc.metrics import METRICS
    from acdc.tasks import load_task  # pyright: ignore[reportMissingImports]

    _check(arguments)
    metric = choose("metric", arguments.metric, METRICS)
    choose("positions", arguments.positions, dict.fromkeys(POSITIONS))
    model, prompt = load_with_prompt(arguments)
    task = None if arguments.task is None else load_task(arguments.task, model.tokenizer, n=arguments.prompts,
                                                         seed=arguments.seed)
    batches = [] if task is None else task.batches(model.tokenizer, device=arguments.device)
    interventions, cut = _actions(arguments, model, prompt, batches)
    drawn = {"temperature": arguments.sample, "seed": arguments.seed}
    before = generate(model, prompt, arguments.tokens, **drawn)
    after = (generate(model, prompt, arguments.tokens, interventions=interventions, **drawn) if cut is None else
             generate_cut(model, prompt, arguments.tokens, cut, **drawn))
    record: dict[str, Any] = {
        "model": arguments.model, "prompt": arguments.prompt, "seed": arguments.seed, "temperature": arguments.sample,
        "done": [i.text for i in interventions],
        **{name: model.tokenizer.decode(found[0].tolist()) for name, found in (("before", before), ("after", after))},
    }
    if cut is not None:
        record["done"] = [f"{cut.circuit.graph.n_edges - cut.circuit.n_edges:,} edges cut ({arguments.ablation})"]
    print(f"{'; '.join(record['done'])}\n\nbefore: {arguments.prompt}{record['before']}\n\n"
          f"after:  {arguments.prompt}{record['after']}")
    record |= _measured(arguments, model, batches, metric, interventions, cut)
    if arguments.out:
        write_file(arguments.out, json.dumps(record, indent=1, allow_nan=False))
        print(f"written to {arguments.out}")


def _check(arguments: argparse.Namespace) -> None:
    given = [name for name in ("direction", "positive", "feature", "token") if getattr(arguments, name) is not None]
    steers, cuts = bool(given), bool(arguments.ablate) or arguments.only is not None
    if len(given) > 1 or not (steers or cuts):
        raise AcdcError("say what to do: one of --direction, --from with --against, --feature or --token; or --ablate, "
                        "or --only")
    if steers and (arguments.strength is None) == (arguments.clamp is None):
        raise AcdcError("steering takes either --strength or --clamp")
    if (arguments.positive is None) != (arguments.against is None):
        raise AcdcError("--from and --against go together: a direction lies between two sets of prompts")
    if arguments.at is None and given and given[0] not in ("direction", "feature"):
        raise AcdcError("--at is needed: the site to steer at, such as resid12")
    if arguments.ablation not in ("zero", "mean_over_positions"):
        raise AcdcError(f"--ablation {arguments.ablation}: text of any length can be generated with zero or "
                        "mean_over_positions only")
    if cuts and arguments.ablation != "zero" and arguments.task is None:
        raise AcdcError("--ablation mean_over_positions takes the means over a task's prompts; give --task")
    if arguments.out and not arguments.out.parent.is_dir():
        raise AcdcError(f"cannot write to {arguments.out}: {arguments.out.parent} is not a folder")
    check_device(arguments.device)


def load_with_prompt(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The model and the prompt's tokens."""
    from acdc.intervention.direction import token_batches
    from acdc.models import load_model

    quiet_libraries()
    say(f"loading {arguments.model}")
    model = load_model(arguments.model, dtype=arguments.dtype, device=arguments.device)
    return model, token_batches(model, [arguments.prompt])[0]


def _actions(arguments: argparse.Namespace, model: Any, prompt: Any, batches: list[Any]) -> tuple[list[Any], Any]:
    """Interventions, or a cut."""
    from acdc.ablation import prepare_ablation
    from acdc.intervention.generation import Cut, without
    from acdc.intervention.interventions import ablate_nodes, add, clamp
    from acdc.task import Batch

    interventions = []
    if arguments.direction or arguments.positive or arguments.feature or arguments.token:
        direction = _direction(arguments, model, prompt)
        how = {"absolute": arguments.absolute, "positions": arguments.positions}
        interventions = [add(direction, arguments.strength, **how) if arguments.clamp is None else
                         clamp(direction, arguments.clamp, **how)]
    if not arguments.ablate and arguments.only is None:
        return interventions, None
    batches = batches or [Batch(prompt, prompt, prompt[:, 0], prompt[:, 0], ())]
    ablation = prepare_ablation(model, batches, arguments.ablation)
    graph = model.graph()
    if arguments.only is None and all(name in graph.src_index for name in arguments.ablate):
        return interventions + ablate_nodes(model, arguments.ablate, ablation(batches[0])), None
    if interventions:
        raise AcdcError("steering while edges or circuits are cut: circuits are run node by node, without steering; "
                        "ablate nodes, or do one of both")
    if arguments.only is not None:
        return [], Cut(read_circuit(arguments.only), ablation)
    if len(arguments.ablate) == 1 and Path(arguments.ablate[0]).exists():
        return [], Cut(read_circuit(Path(arguments.ablate[0])).complement(), ablation)
    return [], Cut(without(graph, arguments.ablate), ablation)


def _direction(arguments: argparse.Namespace, model: Any, prompt: Any) -> Any:
    from acdc.intervention import direction as of

    if arguments.positive:
        sets = [of.token_batches(model, prompts_of(path)) for path in (arguments.positive, arguments.against)]
        found = of.difference_of_means(model, arguments.at, *sets, over="all", label=arguments.positive.stem)
    elif arguments.feature:
        found = feature_of(arguments.feature, arguments.at)
    elif arguments.token is not None:
        found = of.token_direction(model, arguments.at, arguments.token)
    else:
        found = of.load_direction(arguments.direction, arguments.at)
    found = of.checked(model, found)
    if found.scale is None and not arguments.absolute:
        found = of.with_scale(model, found, [prompt])
    if arguments.save:
        of.save_direction(arguments.save, found)
    return found


def prompts_of(path: Path) -> list[str]:
    """The lines of a file that are not empty."""
    return [line for line in read_text(path).splitlines() if line.strip()]


def feature_of(name: str, at: str | None) -> Any:
    """The direction of `CODER:INDEX`."""
    from acdc.intervention.direction import feature_direction

    coder, index = coder_and_index("--feature", name, at)
    return feature_direction(coder.target, coder.decoder, index)


def coder_and_index(option: str, name: str, at: str | None) -> tuple[Any, int]:
    from acdc.sae.formats import load_coder

    path, _, index = name.rpartition(":")
    if not path or not index.isdigit():
        raise AcdcError(f"{option} {name}: write the coder's folder and the number of the feature, CODER:INDEX")
    coder = load_coder(Path(path), site=at)
    coder.check_feature(int(index))
    return coder, int(index)


def _measured(arguments: argparse.Namespace, model: Any, batches: list[Any], metric: Any, interventions: list[Any],
              cut: Any) -> dict[str, Any]:
    from acdc.annotation.text import read_text as running_text
    from acdc.annotation.text import windows
    from acdc.intervention.measuring import before_after, metric_change, text_loss

    results = {}
    if batches:
        results[metric.name] = metric_change(model, batches, metric, interventions=interventions, cut=cut)
        print(f"\n{metric.name} on {arguments.task}: {results[metric.name]}")
    if arguments.text:
        text = windows(model, running_text(arguments.text), 64, 8)
        losses = (text_loss(model, text), text_loss(model, text, interventions=interventions, cut=cut))
        results["loss_on_text"] = before_after(*losses)
        print(f"\nloss on {arguments.text}, nats a token: {results['loss_on_text']}")
    return {name: {part: vars(estimate) for part, estimate in vars(result).items()} for name, result in results.items()}
