"""The packed step: the tokens of many lanes as the rows of one forward through one resident, frozen base model.

Nothing here trains. The engine runs this code on tensors with data, the planner runs the same code on tensors
without, and listens to its phases.

Import what is needed from its modules: :mod:`~lora_lab.packing.inputs` (tokens to index tensors),
:mod:`~lora_lab.packing.paths` (the lanes' paths on the base), :mod:`~lora_lab.packing.forward` (losses out).
Beneath them :mod:`~lora_lab.packing.linear` is the product of many lanes, :mod:`~lora_lab.packing.decoder` a whole
Llama-like model, and :mod:`~lora_lab.packing.native` the CPU kernels.
"""
