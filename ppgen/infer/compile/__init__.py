"""The compiled step: a training step of any program, recorded once and compiled by inductor."""
