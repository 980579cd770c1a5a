"""What happens to a step whose loss or gradient is not finite? It is skipped; after a few in a row the run ends.

The gradient of a float16 run is that of the loss times a scale, which keeps small gradients from vanishing and makes
large ones overflow now and then. Such a step is skipped too, and the scale halved; it is doubled after 2,000 good steps
in a row. Micikevicius et al., "Mixed Precision Training", section 3.2. Loss and norm are those of all ranks together,
so that every rank decides the same.
"""

import math
from dataclasses import dataclass
from typing import Literal

from moeut.training.precision import Precision

FIRST_SCALE = 2.0**16
GROW_AFTER_STEPS = 2000


@dataclass
class Guard:
    """Decides which steps are applied. Its fields are all that it remembers.

    scale: factor on the loss, 1 unless `scaled`. good_steps: in a row. failures: steps in a row that were skipped
    although a smaller scale would not have helped.
    """

    scaled: bool = False
    scale: float = 1.0
    good_steps: int = 0
    failures: int = 0

    @classmethod
    def of(cls, precision: Precision | Literal["auto"]) -> "Guard":
        """The guard of a run of this precision, at its beginning."""
        return cls(scaled=True, scale=FIRST_SCALE) if precision == "float16" else cls()

    def passes(self, loss: float, gradient_norm: float) -> bool:
        """Whether a step of this loss and this norm is applied; the scale of the next one follows from it."""
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            self.failures = 0
            self.good_steps += 1
            if self.scaled and self.good_steps % GROW_AFTER_STEPS == 0:
                self.scale *= 2
            return True
        self.good_steps = 0
        if math.isfinite(loss) and self.scale > 1:
            self.scale /= 2
        else:
            self.failures += 1
        return False
