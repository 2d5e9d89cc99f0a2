"""Rollouts by vLLM, through TRL (`rl.vllm`, docs/engines.md)."""

import json
from urllib.error import HTTPError
from urllib.request import urlopen

from rarl.errors import UserError
from rarl.params import Rl


def sampling_arguments(rl: Rl, suppressed: list[int]) -> dict:
    """Arguments of `GRPOConfig` for the rollouts; the tokens `suppressed` are never sampled.

    With vLLM, TRL corrects for the difference between vLLM's log-probabilities and the trainer's by importance
    sampling, in its default mode or, for VESPO, in the one that it accepts.

    >>> sampling_arguments(Rl(vllm="colocate"), [7])["generation_kwargs"]
    {'logit_bias': {7: -100.0}}
    """
    sampling = {"num_generations": rl.group_size, "temperature": rl.temperature, "top_p": rl.top_p, "top_k": 0}
    sampling["max_completion_length"] = rl.max_completion_length
    if rl.vllm is None:
        return sampling | {"generation_kwargs": {"suppress_tokens": suppressed}}
    return sampling | {
        "generation_kwargs": {"logit_bias": dict.fromkeys(suppressed, -100.0)},
        "use_vllm": True,
        "vllm_mode": rl.vllm,
        "vllm_gpu_memory_utilization": rl.vllm_memory,
        "vllm_server_base_url": rl.vllm_url,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "token_truncate" if rl.loss == "vespo" else "sequence_mask",
    }


def check_server(url: str) -> None:
    """Look for a vLLM server that TRL can train with; sends nothing.

    Raises:
        UserError: there is none, or it runs without TRL's settings.
    """
    where, expected = f"rl.vllm_url = {url}", "a vLLM server with TRL's settings"
    fix = "start it with `rarl serve base --rollouts` (docs/engines.md), or set rl.vllm to null"
    wanted = {"weight transfer": True, "logprobs_mode": "processed_logprobs"}
    try:
        with urlopen(f"{url.rstrip('/')}/server_info?config_format=json", timeout=10) as response:
            config = json.load(response)["vllm_config"]
        found = {
            "weight transfer": config["weight_transfer_config"] is not None,
            "logprobs_mode": config["model_config"]["logprobs_mode"],
        }
    except HTTPError as error:
        raise UserError(where, f"HTTP {error.code} at /server_info", expected, fix) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(where, f"no vLLM server ({error})", expected, fix) from None
    if found != wanted:
        found, expected = (", ".join(f"{key}: {value}" for key, value in one.items()) for one in (found, wanted))
        raise UserError(where, found, expected, fix)
