"""How do other Universal Transformers compare, in loss, time and memory? Figure 7 and table 5."""

from dataclasses import replace

from moeut.experiments.reproduction.scales import Scale
from moeut.experiments.reproduction.study import MEMORY, SECONDS, Study, below, by_place
from moeut.experiments.reproduction.systems import DENSE, MOEUT, SUT, SUT_WITHOUT_ACT, UNIVERSAL

TIMED_STEPS = 20


def sparse_universal(scale: Scale) -> Study:
    """MoEUT, dense, and SUT with and without adaptive computation time."""
    systems = (MOEUT, DENSE, SUT, SUT_WITHOUT_ACT)
    teams = [
        [scale.entrant(system, size, corpus, f"{size} {corpus}") for system in systems]
        for corpus in scale.corpora("c4", "pes2o")
        for size in scale.sizes("44m", "244m")
    ]
    return Study(
        name="sut",
        source="figure 7",
        question="How does a Sparse Universal Transformer do, with and without halting?",
        found="MoEUT is the first Universal Transformer to be better than a dense one (abstract), so SUT is worse than "
        "both (the numbers, and the order of its two forms, were not found).",
        entrants=[entrant for team in teams for entrant in team],
        charts=[by_place("by-size", "size and corpus")],
        directions=[
            direction
            for moeut, dense, *suts in teams
            for direction in [
                *below([moeut], dense), *(below_ for sut in suts for below_ in below([moeut, dense], sut)),
            ]
        ],
    )  # fmt: skip


def time_and_memory(scale: Scale) -> Study:
    """A few steps of each system, for their time and memory alone."""
    [size], [corpus] = scale.sizes("244m"), scale.corpora("c4")
    training = scale.training[size]
    short = replace(
        training, num_steps=TIMED_STEPS, schedule=replace(training.schedule, warmup_steps=0), report_every_steps=1,
        save_every_steps=TIMED_STEPS,
    )  # fmt: skip
    full = [scale.entrant(system, size, corpus) for system in (MOEUT, DENSE, UNIVERSAL, SUT)]
    moeut, dense, *rivals = (replace(entrant, name=f"timed-{entrant.name}", training=short) for entrant in full)
    return Study(
        name="time",
        source="table 5",
        question="How long does a step of training take, and how much memory, beside the dense Transformer, a naive "
        "Universal Transformer and a SUT of as many parameters?",
        found="With the authors' kernel MoEUT takes 1.7 times as long as the dense model on eight V100, and both less "
        "time and less memory than the other two (caption; seconds and bytes were not found).",
        entrants=[moeut, dense, *rivals],
        charts=[],
        directions=[
            *below([dense], moeut, SECONDS),
            *(one for rival in rivals for metric in (SECONDS, MEMORY) for one in below([moeut], rival, metric)),
        ],
        metrics=(SECONDS, MEMORY),
    )
