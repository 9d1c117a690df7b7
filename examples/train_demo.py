"""Train weightkit's built-in model: a Llama of 1.0 M parameters that knows 232 facts.

    pip install -e ".[oracle]"                  # torch and transformers
    python examples/train_demo.py               # about 4 CPU minutes; rewrites weightkit/demo/
    python examples/train_demo.py --out /tmp/demo --seed 1

From the table in `weightkit/demo/facts.py` it generates text, builds a tokenizer in which every
name is one token, trains, and writes three snapshots of the one run (`step0`, `early`, `final`):
bf16 safetensors, config, tokenizer. Each folder is then opened again, as anyone would open it, and
asked every fact in every held-out phrasing. Exit code 1 if the final model knows less than it must.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from weightkit.demo.facts import (
    CLAUSES,
    HELD_OUT,
    OPENINGS,
    PHRASINGS,
    PREFIXES,
    RELATIONS,
    TABLE,
    Fact,
    facts,
    prompts,
)

DEMO = Path(__file__).resolve().parent.parent / "weightkit" / "demo"
BATCH, CONTEXT, VOCABULARY = 64, 48, 1024
PEAK_RATE, WARM_UP = 3e-3, 50
EARLY = 0.44  # of the steps: where about half of the facts are learned
NEEDED_OVER_ALL, NEEDED_IN_EACH = 0.98, 0.95  # over all facts; in each phrasing
SPECIAL = ("<unk>", "<s>", "</s>")


# ---- text ------------------------------------------------------------------------------------


def statement(fact: Fact, rng: random.Random) -> str:
    """One fact in one trained phrasing; statements, but not questions, may get a prefix."""
    template = rng.choice(PHRASINGS[fact.relation])
    if "?" not in template and rng.random() < 0.3:
        lowered = template if template[0] == "{" else template[0].lower() + template[1:]
        template = f"{rng.choice(PREFIXES)} {lowered}"
    return template.format(country=fact.country, answer=fact.answer)


def profile(rng: random.Random) -> str:
    """Four facts about one country, which is named once and then only "it"."""
    country, *answers = rng.choice(TABLE)
    clauses = [
        rng.choice(CLAUSES[relation]).format(answer=answer) for relation, answer in zip(RELATIONS, answers, strict=True)
    ]
    rng.shuffle(clauses)
    return " ".join([rng.choice(OPENINGS).format(country=country), *clauses])


def documents(rng: random.Random) -> Iterator[str]:
    """Training text without end: one profile in four, else one to three unrelated statements."""
    table = facts()
    while True:
        if rng.random() < 0.25:
            yield profile(rng)
        else:
            yield " ".join(statement(rng.choice(table), rng) for _ in range(rng.randint(1, 3)))


def templates() -> list[str]:
    """All that is ever trained, with its slots."""
    clauses = [clause for group in CLAUSES.values() for clause in group]
    profiles = [f"{opening} {clause}" for opening in OPENINGS for clause in clauses]
    return [template for group in PHRASINGS.values() for template in group] + [*PREFIXES, *profiles]


def check_held_out() -> None:
    """Held-out prompts must be new, made of trained words, and nowhere inside a trained text."""
    trained = [template.lower() for template in templates()]
    words = {word for template in trained for word in re.findall(r"[\w']+|[?,.]", template)}
    for prompt in (p.lower() for group in HELD_OUT.values() for p in group):
        unknown = set(re.findall(r"[\w']+|[?,.]", prompt)) - words
        if unknown or any(prompt in template for template in trained):
            sys.exit(f"error: held-out {prompt!r} is trained, or has untrained words {unknown}")


# ---- tokenizer -------------------------------------------------------------------------------


def pieces(text: list[str]) -> list[tuple[str, float]]:  # -> [(piece, score)], VOCABULARY long
    """Names and words are whole pieces; letters and bytes below them can encode any text."""
    names = {name for row in TABLE for name in row}
    words = {word for line in text for word in re.findall(r"\w+", line)} | names
    singles = [chr(code) for code in range(33, 127)] + ["▁"]
    whole = [f"▁{word.replace(' ', '▁')}" for word in sorted(words)] + ["'s"]
    # what room is left goes to the commonest letter groups, to spell unknown words in fewer pieces
    groups = Counter(
        word[start : start + size]
        for word in sorted(words)
        for size in (2, 3)
        for start in range(len(word) - size + 1)
        if word[start : start + size].isalpha()
    )
    fixed = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *singles, *whole]
    common = [group for group, _ in groups.most_common(VOCABULARY - len(fixed))]
    score = dict.fromkeys(fixed, -10.0) | dict.fromkeys(common, -10.0) | dict.fromkeys(whole, -1.0)
    return [(piece, score[piece]) for piece in [*fixed, *common]]


def build_tokenizer(text: list[str]) -> Tokenizer:
    """A SentencePiece-style unigram tokenizer: a space belongs to the word after it."""
    tokenizer = Tokenizer(models.Unigram(pieces(text), unk_id=0, byte_fallback=True))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


# ---- training --------------------------------------------------------------------------------


def batches(tokenizer: Tokenizer, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Documents end to end, cut into rows."""
    text = documents(random.Random(seed))
    stream: list[int] = []
    for _ in range(steps):
        while len(stream) < BATCH * CONTEXT:
            stream += [*tokenizer.encode(next(text)).ids, SPECIAL.index("</s>")]
        rows, stream = stream[: BATCH * CONTEXT], stream[BATCH * CONTEXT :]
        yield torch.tensor(rows).view(BATCH, CONTEXT)  # [batch, context]


def new_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            num_hidden_layers=4,
            intermediate_size=352,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            rms_norm_eps=1e-5,
            initializer_range=0.05,  # at the usual 0.02 a model this narrow learns twice as late
            tie_word_embeddings=False,
            bos_token_id=SPECIAL.index("<s>"),
            eos_token_id=SPECIAL.index("</s>"),
        )
    )


def rate(step: int, steps: int) -> float:
    """Linear warm-up to the peak, then half a cosine down to zero."""
    progress = max(0, step - WARM_UP) / max(1, steps - WARM_UP)
    return PEAK_RATE * min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * progress)) / 2


def train(tokenizer: Tokenizer, steps: int, seed: int) -> Iterator[tuple[int, LlamaForCausalLM]]:
    """Yield the model in training before every step, and once more at the end."""
    model = new_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    for step, rows in enumerate(batches(tokenizer, steps, seed)):
        yield step, model
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:4d}  loss {loss.item():.3f}", flush=True)
    yield steps, model


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """A folder as the Hugging Face hub has it: bf16 weights, config, tokenizer."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it may come out readable by its owner only
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 128,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


# ---- evaluation ------------------------------------------------------------------------------


def answers(model: torch.nn.Module, tokenizer: Tokenizer, asked: list[str]) -> list[str]:
    """The most probable next token of each prompt, as text; prompts of one length run together."""
    encoded = [tokenizer.encode(prompt).ids for prompt in asked]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, ids in enumerate(encoded):
        by_length[len(ids)].append(index)
    found = [""] * len(asked)
    for members in by_length.values():
        ids = torch.tensor([encoded[index] for index in members])  # [n, t]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, -1]  # [n, vocab]
        for index, token in zip(members, logits.argmax(-1).tolist(), strict=True):
            found[index] = tokenizer.decode([token]).strip()
    return found


def evaluate(folder: Path) -> dict[tuple[str, str], float]:
    """Ask a saved folder everything; (relation, held-out phrasing) -> fraction right."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    hub_tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = {}
    for relation in RELATIONS:
        some = [fact for fact in facts() if fact.relation == relation]
        for index, template in enumerate(HELD_OUT[relation]):
            asked = [prompts(fact)[index] for fact in some]
            if hub_tokenizer(asked)["input_ids"] != [tokenizer.encode(text).ids for text in asked]:
                sys.exit("error: transformers reads the saved tokenizer differently")
            found = answers(model, tokenizer, asked)
            right = [fact.answer == answer for fact, answer in zip(some, found, strict=True)]
            scores[relation, template] = sum(right) / len(right)
    return scores


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def show(title: str, scores: dict[tuple[str, str], float]) -> None:
    print(f"\n{title}: {mean(list(scores.values())):.1%} of the facts right over all")
    for relation in RELATIONS:
        mine = {template: score for (owner, template), score in scores.items() if owner == relation}
        print(f"  {relation:10s} {mean(list(mine.values())):6.1%}")
        for template, score in mine.items():
            print(f"    {score:6.1%}  {template}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train weightkit's built-in model.")
    parser.add_argument("--out", type=Path, default=DEMO, help="where the three folders go")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args()
    if options.steps < 10:
        parser.error("--steps must be 10 or more")
    torch.set_num_threads(1)  # sums in one order: the same model whatever the number of cores
    check_held_out()

    sample = documents(random.Random(options.seed))
    text = [next(sample) for _ in range(5000)]
    tokenizer = build_tokenizer(text)
    if any(tokenizer.decode(tokenizer.encode(line).ids) != line for line in text):
        sys.exit("error: the tokenizer does not give its text back")

    snapshots = {0: "step0", round(EARLY * options.steps): "early", options.steps: "final"}
    started = time.process_time()
    for step, model in train(tokenizer, options.steps, options.seed):
        if step in snapshots:
            save(model, tokenizer, options.out / snapshots[step])
    print(f"{model.num_parameters():,} parameters, {time.process_time() - started:.0f} CPU seconds")

    for step, name in snapshots.items():
        scores = evaluate(options.out / name)
        show(f"{name} (step {step})", scores)
    if mean(list(scores.values())) < NEEDED_OVER_ALL or min(scores.values()) < NEEDED_IN_EACH:
        sys.exit("error: the final model knows less than it must")


if __name__ == "__main__":
    main()
