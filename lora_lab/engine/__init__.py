"""The training loop: one loop for one lane or many, on one resident and frozen base model.

Import what is needed from its modules: :mod:`~lora_lab.engine.pack` (the loop),
:mod:`~lora_lab.engine.lane` (one run in it), :mod:`~lora_lab.engine.evaluate`.
"""
