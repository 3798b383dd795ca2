"""What public data sheets say of GPUs: dense peaks (no sparsity) and memory.

Public: Gpu, GPUS.
"""

from __future__ import annotations

from dataclasses import dataclass

from .settings import Training


@dataclass(frozen=True)
class Gpu:
    """One card.

    memory: GiB. half: TFLOP/s of bf16 (fp16 where there is no bf16), sums in float32. tf32, float32: TFLOP/s; tf32 is 0
    where there is none. bf16: the card has it.
    """

    name: str
    memory: float
    half: float
    tf32: float
    float32: float
    bf16: bool = True

    def speed(self, training: Training) -> float:
        """Peak of the products under the run's autocast, TFLOP/s; 0: the card lacks the type."""
        if training.use_amp and training.amp_dtype in ("bf16", "fp16"):
            return 0.0 if training.amp_dtype == "bf16" and not self.bf16 else self.half
        wanted = training.amp_dtype == "tf32" if training.use_amp else training.use_tf32
        return self.tf32 if wanted and self.tf32 else self.float32

    def float_speed(self, training: Training) -> float:
        """Peak of products outside autocast, TFLOP/s."""
        return self.tf32 if training.use_tf32 and self.tf32 else self.float32


GPUS = (
    Gpu("RTX 2080 Ti", 11, 53.8, 0, 13.4, bf16=False),
    Gpu("V100 SXM2", 32, 125, 0, 15.7, bf16=False),
    Gpu("RTX 3090", 24, 71, 35.6, 35.6),
    Gpu("RTX 4090", 24, 165.2, 82.6, 82.6),
    Gpu("L40S", 48, 362, 183, 91.6),
    Gpu("A100 SXM", 80, 312, 156, 19.5),
    Gpu("H100 SXM", 80, 989, 495, 67),
    Gpu("H200 SXM", 140, 989, 495, 67),
)
"""Sources: NVIDIA's white papers "Turing", "Ampere GA102" and "Ada" (appendices), data sheets of V100, L40S, A100, H100 and
H200; figures that are given "with sparsity" are halved. Memory is what a program finds free, rounded."""
