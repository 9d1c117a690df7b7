"""Where does an answer come from? The logit lens, what each block adds to a token, and one head silenced.

python examples/look_inside.py [MODEL [PROMPT]]
"""

import sys

import weightkit as wk


def main(path: str = "demo", prompt: str = "The capital of France is") -> None:
    model = wk.open(path)
    answer = model.next_tokens(prompt, 1)[0]
    print(f"{prompt}{answer.token}\n\nif the model ended there, the likeliest token, and the logit of the answer:")
    for address, logits in model.lens(prompt).items():
        best = int(logits[-1].argmax())
        print(f"{address:<18} {model.token_text(best)!r:<16} {logits[-1, answer.id]:8.3f}")

    parts = model.contributions(prompt, [answer.id])
    largest = sorted(parts, key=lambda address: -abs(parts[address][-1, 0]))
    print("\nwhat adds most to the logit of the answer:")
    for address in largest[:5]:
        print(f"{address:<18} {parts[address][-1, 0]:+8.3f}")

    trace = model.trace(prompt, capture=["layers.0.attn.pattern"])
    words = [model.token_text(i) for i in trace.ids]
    for head, weights in enumerate(trace["layers.0.attn.pattern"][:, -1]):
        changed = model.trace(prompt, changes=[wk.zero(f"layers.0.attn.heads[head={head}]")])
        seen = words[int(weights.argmax())]
        print(f"\nhead {head} of layer 0 looks most at {seen!r}", end="")
        print(f"; without it the answer has a logit of {changed.logits[-1, answer.id]:.3f}", end="")
    print()


if __name__ == "__main__":
    main(*sys.argv[1:3])
