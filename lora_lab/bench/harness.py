"""lm-evaluation-harness over a pack: one forward scores all its lanes.

:class:`PackedLM` is lm-eval's own Hugging Face model (its tokenisation, truncation, prefix token, rolling windows),
whose forwards are ours. What a task is and how its answers count stays lm-eval's. The lanes take turns at its
evaluator; the first turn computes everything for all of them.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval import utils
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from lora_lab.bench.beginnings import Asked
from lora_lab.bench.generate import Prompts, generate
from lora_lab.bench.likelihood import likelihoods
from lora_lab.errors import DataError
from lora_lab.methods import Attachment
from lora_lab.packing.paths import Mount


class PackedLM(HFLM):
    """``lanes`` (``None``: the base model) of a mounted pack, of which ``lane`` is the one that answers now."""

    def __init__(self, mount: Mount, lanes: Sequence[Attachment | None], batch_size: int) -> None:
        super().__init__(pretrained=mount.base.model, tokenizer=mount.base.tokenizer, batch_size=batch_size)
        self.mount, self.lanes, self.lane = mount, lanes, 0
        self._tied: dict[tuple[Any, ...], list[bool]] = {}
        self._likelihoods: dict[tuple[Any, ...], list[tuple[float, bool]]] = {}
        self._texts: dict[tuple[str, str], list[str]] = {}

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See lm-eval: ``(log-likelihood, greedy)`` of each request, by the lane whose turn it is."""
        arguments = [request.args for request in requests]
        new = [request for request in requests if request.args not in self._likelihoods]
        if new:
            found = super().loglikelihood(new, disable_tqdm=True)
            assert len(found) == len(new)
        return [self._likelihoods[key][self.lane] for key in arguments]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Every lane's answers to tokenised requests; kept under their texts where they have any."""
        asked = []
        for _, context, continuation in requests:
            ids = (context + continuation)[-(self.max_length + 1) :]
            asked.append(Asked(tuple(ids), len(ids) - len(continuation)))
        found = likelihoods(self.mount, self.lanes, asked)
        for i, (key, context, continuation) in enumerate(requests):
            name = key if key is not None else (tuple(context), tuple(continuation))
            self._likelihoods[name] = [(float(lane.log[i]), bool(lane.greedy[i])) for lane in found]
            self._tied[name] = [bool(lane.tied[i]) for lane in found]
        return [(float(x), bool(y)) for x, y in zip(found[self.lane].log, found[self.lane].greedy, strict=True)]

    def tied(self, request: Any) -> bool:
        """Whether greedy decoding could as well give another token than one of the request's."""
        return self._tied[request.args][self.lane]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """See lm-eval: the log-likelihood of each whole text, in windows."""
        windows: list[list[tuple[None, list[int], list[int]]]] = []
        for request in requests:
            (text,) = request.args
            rolled = utils.get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            windows.append([(None, *utils.make_disjoint_window(window)) for window in rolled])
        new = [w for some in windows for w in some if (tuple(w[1]), tuple(w[2])) not in self._likelihoods]
        if new:
            self._loglikelihood_tokens(new)
        return [sum(self._likelihoods[tuple(a), tuple(b)][self.lane][0] for _, a, b in some) for some in windows]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """See lm-eval: the greedy continuation of each request up to one of its stop strings.

        Raises:
            DataError: a task that samples; its score would be another one each time.
        """
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for request in requests:
            context, arguments = request.args
            if (context, repr(arguments)) not in self._texts:
                groups.setdefault(repr(arguments), []).append((context, arguments))
        for name, some in groups.items():
            settings = normalize_gen_kwargs(some[0][1], self.max_gen_toks)
            until = handle_stop_sequences(settings.pop("until", None), eos=eos)
            longest = int(settings.pop("max_gen_toks"))
            if settings.get("do_sample") or settings.get("num_beams", 1) != 1:
                raise DataError(
                    f"evaluation.tasks: {requests[0].task_name} asks for {settings}; lora-lab generates greedily only. "
                    "Score it with lm_eval itself, or override its generation_kwargs in a task YAML of your own."
                )
            room = self.max_length - longest
            ids = [self.tok_batch_encode([text], left_truncate_len=room)[0][0].tolist() for text, _ in some]
            prompts = [Prompts(lane, ids) for lane in self.lanes]
            answers = generate(self.mount, prompts, longest, self.batch_size, stop=until)
            for i, (context, _) in enumerate(some):
                texts = [postprocess_generated_text(lane[i], until, None) for lane in answers]
                self._texts[context, name] = texts
        return [self._texts[request.args[0], repr(request.args[1])][self.lane] for request in requests]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Within, lm-eval and datasets draw no bars and log errors only; what lm-eval prints goes to standard error."""
    import datasets

    harness, bars = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    level, drawn = harness.level, tqdm.__init__

    def undrawn(self: Any, *arguments: Any, **named: Any) -> None:
        drawn(self, *arguments, **named | {"disable": True})

    harness.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    tqdm.__init__ = undrawn
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.__init__ = drawn
        harness.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
