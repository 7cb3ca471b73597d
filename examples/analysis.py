# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # What did mid-training and reinforcement learning change?
# The functions under `prism analyze` are pure: tensors in, numbers out. This tour uses them on three models of one
# architecture, by default those of the quickstart. It is a script with cells: editors open it as a notebook, and
# `jupytext --to ipynb examples/analysis.py` makes one.
#
#     python examples/analysis.py runs/shoebox/base runs/shoebox/midtrain runs/shoebox/rl_midtrain

# %%
from __future__ import annotations

import sys
from pathlib import Path

import torch

from megatron_prism.analysis.change import change
from megatron_prism.analysis.cka.pooled_states import open_model as open_running_model
from megatron_prism.analysis.cka.similarity import chance_cka, linear_cka, unbiased_cka
from megatron_prism.analysis.direction import chance_std, products
from megatron_prism.analysis.figures import save
from megatron_prism.analysis.inputs import open_model
from megatron_prism.analysis.spectrum import exact_spectrum
from megatron_prism.analysis.view import view
from megatron_prism.analysis.weight_summary import analyze_weights

# A notebook has arguments of its own, which are no folders.
named = [Path(argument) for argument in sys.argv[1:] if Path(argument).is_dir()]
run = Path("runs/shoebox")
base, midtrained, rl = named if len(named) == 3 else (run / "base", run / "midtrain", run / "rl_midtrain")

# %% [markdown]
# ## One matrix
# `open_model` reads Hugging Face and Megatron folders as the same tensors; nothing is loaded before it is asked for.

# %%
models = [open_model(folder) for folder in (base, midtrained, rl)]
name = next(each for each in models[0].shapes if each.endswith(("q_proj.weight", "in_proj.weight")))
before, middle, after = (model.tensor(name).clone() for model in models)
for what, old, new in (("mid-training", before, middle), ("RL", middle, after)):
    found = change(old, new)
    print(
        f"{what} moved {name} by {found.delta:.4f} of its norm (rounding alone: {found.floor:.1e}); "
        f"{100 * found.sparsity[0.01]:.1f} % of its elements moved by less than 1 %"
    )

# %% [markdown]
# ## Its direction and its rank
# Does RL go on where mid-training went? A cosine means something only beside what chance gives.

# %%
update, step = middle.float() - before.float(), after.float() - middle.float()
pair = products(update, step)
print(f"cosine of the two updates: {pair.cosine:+.4f}, by chance 0 ± {chance_std(pair.elements):.4f}")

spectrum, random = exact_spectrum(update), exact_spectrum(torch.randn(update.shape))
print(
    f"effective rank of mid-training's update: {spectrum.effective_rank()[0]:.1f} of {spectrum.size}; "
    f"of a random matrix: {random.effective_rank()[0]:.1f}"
)

# %% [markdown]
# ## Representations
# Mean-pooled hidden states of the same inputs. Here the inputs are random tokens; `prism analyze cka` takes texts. With
# 64 inputs and wide layers much of CKA is bias, so the unbiased estimate and the value by chance stand beside it.

# %%
generator = torch.Generator().manual_seed(1)
inputs = torch.randint(models[0].architecture.vocab_size, (64, 16), generator=generator).tolist()
states = []
for folder in (base, midtrained):
    with open_running_model(folder, "megatron", torch.float32) as running:
        states.append(running.pooled(inputs))
for layer in range(states[0].shape[1]):
    x, y = states[0][:, layer], states[1][:, layer]
    values = (
        f"CKA {linear_cka(x, y):.3f}, unbiased {unbiased_cka(x, y):.3f}, by chance {chance_cka(x, y):.3f}"
    )
    print(f"point {layer}: {values}")

# %% [markdown]
# ## All tensors at once
# The verbs return the same document that `--json` writes. Its tables and figures are made from it alone.

# %%
analysis = analyze_weights(base, [midtrained, rl])
shown = view(analysis.document)
for model, numbers in analysis.summary["models"].items():
    print(f"{model}: delta {numbers['norm_delta']:.4f}, sparsity {100 * numbers['sparsity']:.1f} %")
save(shown.drawings["delta_by_layer"], Path("delta_by_layer"))
print("wrote delta_by_layer.pdf, .svg and .png")
