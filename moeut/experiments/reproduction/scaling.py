"""Does a MoEUT keep up with a dense Transformer of as many parameters, and with a σ-MoE? Figures 4 and 5."""

from moeut.experiments.reproduction.scales import Scale
from moeut.experiments.reproduction.study import (
    Direction,
    Study,
    below,
    by_number,
    by_place,
    gap,
    non_embedding,
    training_macs,
)
from moeut.experiments.reproduction.systems import DENSE, MOEUT, SIGMA_MOE

WITHOUT_SIGMA_MOE = "1b"
"""The size at which the paper trained no σ-MoE."""


def scaling(scale: Scale) -> Study:
    """MoEUT, dense and σ-MoE at every size."""
    [corpus] = scale.corpora("c4")
    teams = [
        [
            scale.entrant(system, size, corpus)
            for system in (MOEUT, DENSE, SIGMA_MOE)[: 2 if size == WITHOUT_SIGMA_MOE else 3]
        ]
        for size in scale.moeuts
    ]
    return Study(
        name="scaling",
        source="figure 4",
        question="Does a MoEUT predict text as well as a dense Transformer and a σ-MoE that shares no layers, at equal "
        "parameters? And how much computation does each take?",
        found="MoEUT is slightly better than both at equal parameters, and the gap to the dense model grows with size; "
        "at equal computation it is far ahead (captions; the numbers were not found).",
        entrants=[entrant for team in teams for entrant in team],
        charts=[
            by_number("by-parameters", "parameters without embedding and head", non_embedding),
            by_number("by-computation", "multiply-adds of the training, as the paper counts", training_macs),
        ],
        directions=[
            *(direction for moeut, *rivals in teams for rival in rivals for direction in below([moeut], rival)),
            Direction(*(gap(moeut, dense) for moeut, dense, *_ in (teams[0], teams[-1]))),
        ],
    )


def code(scale: Scale) -> Study:
    """MoEUT and dense on source code."""
    [corpus] = scale.corpora("the-stack")
    pairs = [[scale.entrant(system, size, corpus) for system in (MOEUT, DENSE)] for size in scale.sizes("244m", "727m")]
    return Study(
        name="code",
        source="figure 5",
        question="Does a MoEUT predict source code better than a dense Transformer of as many parameters?",
        found="It does, at 244M and 727M (caption; the numbers were not found).",
        entrants=[entrant for pair in pairs for entrant in pair],
        charts=[by_place("by-size", "size")],
        directions=[direction for moeut, dense in pairs for direction in below([moeut], dense)],
    )
