"""Which attention head matters most for a text? Zero each in turn, measure, and save the gentlest cut.

python examples/edit_and_measure.py [MODEL [TEXT [OUT]]]
"""

import sys
import tempfile
from pathlib import Path

import weightkit as wk

TEXT = "The capital of France is Paris. The currency of Japan is the yen. Brazil is a country in South America."


def main(path: str = "demo", text: str = TEXT, out: str | None = None) -> None:
    model = wk.open(path)
    if model.config is None:
        raise SystemExit(model.notes[0])
    effects: dict[str, wk.Effect] = {}
    for layer in range(model.config.layers):
        for head in range(model.config.heads):
            address = f"layers.{layer}.attn[head={head}]"
            effects[address] = wk.measure(model, model.apply(wk.zero(address)), texts=[text])
    ranked = sorted(effects, key=lambda address: effects[address].kl_mean)
    for address in (*ranked[:3], *ranked[-3:]):
        effect = effects[address]
        print(f"{address:<24} KL {effect.kl_mean:8.5f}  perplexity {effect.perplexity_b:8.3f}")

    edited = model.apply(wk.zero(ranked[0]))
    with tempfile.TemporaryDirectory() as folder:
        saved = edited.save(out or Path(folder) / "edited")
        again = wk.diff(model, wk.open(saved))
        print(f"\nsaved without {ranked[0]}; against the original {len(again.changed)} weights differ:")
        print(*(row.address for row in again.changed), sep=", ")


if __name__ == "__main__":
    main(*sys.argv[1:4])
