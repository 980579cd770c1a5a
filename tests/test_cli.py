"""Does the command line do what it says, from text to text, and answer every mistake with one line?"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TEXT = "".join(f"line {number}: the quick brown fox jumps over {number * 7} lazy dogs.\n" for number in range(60))
SMALL = [
    "--model.hidden_size", "16", "--model.vocab_size", "300", "--model.attention.head_dim", "8",
    "--model.feed_forward.num_experts", "4", "--model.feed_forward.num_experts_per_tok", "2",
    "--model.feed_forward.moe_intermediate_size", "8",
    "--training.batch_tokens", "32", "--training.context_length", "16",
    "--training.schedule.warmup_steps", "0", "--training.report_every_steps", "2",
]  # fmt: skip
Run = Callable[..., tuple[int, str, str]]


def write_corpus(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"document {number}\n{TEXT}")
    return folder


@pytest.fixture
def prepared(moeut: Run, tmp_path: Path) -> str:
    write_corpus(tmp_path / "corpus")
    code, _, _ = moeut("prepare", "corpus", "--vocab-size", "300", "--held-out", "0.3", "--quiet")
    assert code == 0
    return "data/corpus"


def test_the_whole_path(moeut: Run, prepared: str, tmp_path: Path):
    code, out, err = moeut("prepare", "corpus", "--vocab-size", "300", "--held-out", "0.3")
    assert code == 0
    assert "nothing to do" in out
    code, out, err = moeut(
        "train", "--data", prepared, "--run", "runs/a", *SMALL, "--training.num_steps", "6", "--license", "mit"
    )
    assert code == 0, err
    assert "6 of 6 steps" in out
    assert "tokens/s" in err
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "final/config.json",
        "final/model.safetensors",
        "final/tokenizer.json",
        "final/README.md",
    ):
        assert (tmp_path / "runs" / "a" / name).is_file(), name

    code, out, _ = moeut("evaluate", "runs/a", "--json", "--quiet")
    assert code == 0
    scores = json.loads(out)
    assert scores["bits_per_byte"] > 0
    assert scores["data"] == prepared
    code, out, _ = moeut("evaluate", "runs/a/final", "--data", prepared, "--context-length", "16", "--batch-size", "3")
    assert code == 0
    assert f"{scores['bits_per_byte']:.4f}" in out

    code, out, _ = moeut("generate", "runs/a", "line 1: ", "--max-new-tokens", "5", "--seed", "3")
    assert code == 0
    assert out.startswith("line 1: ")
    code, as_json, _ = moeut("generate", "runs/a", "line 1: ", "--max-new-tokens", "5", "--seed", "3", "--json")
    assert code == 0
    assert out == "line 1: " + json.loads(as_json)["text"] + "\n"


def test_the_printed_configuration_makes_the_same_run(moeut: Run, prepared: str, tmp_path: Path):
    code, printed, _ = moeut("train", "--data", prepared, *SMALL, "--training.num_steps", "4", "--print-config")
    assert code == 0
    assert not (tmp_path / "runs").exists()
    (tmp_path / "run.yaml").write_text(printed)
    code, again, _ = moeut("train", "--config", "run.yaml", "--print-config")
    assert (code, again) == (0, printed)


def test_an_interrupted_run_goes_on(prepared: str, moeut: Run, tmp_path: Path):
    command = [
        sys.executable, "-m", "moeut", "train", "--data", prepared, "--run", "runs/stopped", *SMALL,
        "--training.num_steps", "4000",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs" / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "goes on from here" in err
    done = json.loads((tmp_path / "runs" / "stopped" / "final" / "training" / "state.json").read_text())["step"]
    assert 0 < done < 4000
    # Another length is another configuration: the same command is what goes on.
    code, _, err = moeut(*command[3:-1], str(done + 2))
    assert code == 2
    assert "belongs to another configuration (training.num_steps: 4000, now" in err


def test_a_finished_run_says_so_and_stays(moeut: Run, prepared: str, tmp_path: Path):
    arguments = ["train", "--data", prepared, "--run", "r", *SMALL, "--training.num_steps", "2", "--quiet"]
    assert moeut(*arguments)[0] == 0
    weights = (tmp_path / "r" / "final" / "model.safetensors").read_bytes()
    metrics = (tmp_path / "r" / "metrics.jsonl").read_text()
    code, out, _ = moeut(*arguments)
    assert code == 0
    assert "2 of 2 steps" in out
    assert (tmp_path / "r" / "final" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "r" / "metrics.jsonl").read_text() == metrics
    code, _, err = moeut(*arguments, "--resume", "never")
    assert code == 2
    assert "has checkpoints already" in err


def mistake(result: tuple[int, str, str]) -> str:
    """The one line that a mistake is answered with."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("moeut: ")
    return lines[0].removeprefix("moeut: ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["prepare", "nowhere"], "nowhere"),
        (["prepare", "empty.txt"], "empty.txt"),
        (["prepare", "hollow"], "hollow"),
        (["prepare", "latin.txt"], "latin.txt"),
        (["prepare", "corpus", "--held-out", "0"], "held_out"),
        (["prepare", "corpus", "--bogus", "1"], "--bogus: unknown argument"),
        (["prepare", "corpus", "--tokenizer", "hollow"], "hollow"),
        (["train", "--data", "nowhere"], "nowhere"),
        (["train", "--preset", "tinny"], "--preset: 'tinny' is unknown; did you mean tiny?"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--model.group_size"], "--model.group_size: a value is missing"),
        (["train", "surplus"], "surplus: unknown argument"),
        (["train", "--data", "corpus"], "corpus"),
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate", "corpus"], "corpus: no model here"),
        (["evaluate", "empty.txt"], "empty.txt"),
        (["generate", "corpus"], "corpus: no model here"),
        (["describe", "--preset", "tiny", "--model.group_size", "3"], "model.group_size"),
        (["describe", "moeut-44m", "tinny"], "tinny: no such file or folder, and no preset; did you mean tiny?"),
        (["describe", "moeut-44m", "--preset", "tiny"], "moeut-44m: name models, or one with --preset"),
        (["describe", "corpus", "tiny"], "corpus: no model here"),
        (["describe", "moeut-44m", "--dtype", "int8"], "--dtype: 'int8' is not one of"),
        (["match", "dense-44m"], "nothing to match"),
        (["match", "dense-44m", "--to", "moeut-44m", "--by", "both"], "a dense model that repeats no layer"),
        (["match", "moeut-44m", "--parameters", "1e3"], "parameters: nothing is near 1,000"),
        (["match", "nowhere", "--to", "moeut-44m"], "nowhere: no such file or folder"),
        (["match", "dense-44m", "--to", "moeut-44m", "--output", "nowhere/rival.yaml"], "nowhere"),
    ],
)
def test_a_mistake_is_answered_with_one_line(arguments: list[str], expected: str, moeut: Run, tmp_path: Path):
    write_corpus(tmp_path / "corpus")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    assert expected in mistake(moeut(*arguments))


def test_mistakes_with_prepared_data(moeut: Run, prepared: str, tmp_path: Path):
    train = ["train", "--data", prepared, "--run", "r", *SMALL, "--training.num_steps", "2", "--quiet"]
    too_small = mistake(moeut(*train, "--model.vocab_size", "200"))
    assert "tokens, more than model.vocab_size 200" in too_small
    too_long = mistake(moeut(*train, "--training.context_length", "100000", "--training.batch_tokens", "200000"))
    assert "needs 100001 tokens and there are" in too_long
    assert not (tmp_path / "r").exists()
    assert moeut(*train)[0] == 0
    assert "training.seed: 0, now 1" in mistake(moeut(*train, "--training.seed", "1"))
    assert "neither auto nor never" in mistake(moeut(*train, "--resume", "perhaps"))
    weights = (tmp_path / "r" / "final").resolve() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "not a safetensors file" in mistake(moeut("evaluate", "r"))
    assert "not a safetensors file" in mistake(moeut("generate", "r"))
    for option, value in (("--temperature", "-1"), ("--top-p", "0"), ("--top-k", "0"), ("--max-new-tokens", "0")):
        assert option.removeprefix("--").replace("-", "_") in mistake(moeut("generate", "r", option, value))


def test_describe_builds_nothing_and_counts_right(moeut: Run):
    code, out, _ = moeut("describe", "--preset", "moeut-1b", "--json")
    assert code == 0
    assert json.loads(out)["parameters"] == 1_040_319_296
    code, out, _ = moeut("describe", "--preset", "moeut-44m", "--model.layer_order", "aabb")
    assert code == 0
    assert "44,345,792" in out
    assert "0 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1" in out


def test_describe_shows_models_side_by_side(moeut: Run, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("model: {norm: pre}\n")
    names = ["moeut-44m", "dense-44m", "mine.yaml"]
    code, out, _ = moeut("describe", *names, "--model.vocab_size", "32000", "--context", "64")
    assert code == 0
    assert out.splitlines()[0].split() == names
    sizes = next(line for line in out.splitlines() if line.startswith("parameters")).split()[1:]
    code, as_json, _ = moeut("describe", "moeut-44m", "mine.yaml", "--model.vocab_size", "32000", "--json")
    assert code == 0
    described = json.loads(as_json)
    assert [f"{facts['parameters']:,}" for facts in described.values()] == [sizes[0], sizes[2]]
    assert described["mine.yaml"]["model"]["norm"] == "pre"
    code, one, _ = moeut("describe", "moeut-44m", "--dtype", "bfloat16", "--json")
    assert code == 0
    assert json.loads(one)["weight_bytes"] == 2 * 44_345_792


def test_a_match_can_be_trained(moeut: Run, tmp_path: Path):
    code, out, _ = moeut("match", "dense-44m", "--to", "moeut-44m", "--output", "rival.yaml")
    assert code == 0
    assert "intermediate_size: 2053, now 2038" in out
    assert "wanted 44,345,792, 0.00% more" in out
    assert "written to rival.yaml" in out
    code, printed, _ = moeut("train", "--config", "rival.yaml", "--print-config")
    assert (code, printed) == (0, (tmp_path / "rival.yaml").read_text())
    code, as_json, _ = moeut("match", "rival.yaml", "--macs", "60e6", "--json")
    assert code == 0
    assert json.loads(as_json)["wanted"] == {"macs_per_token": 60_000_000}
    code, out, _ = moeut("describe", "rival.yaml")
    assert code == 0
    assert "44,346,264" in out


def test_a_shared_layer_runs_more_often(moeut: Run, prepared: str):
    train = ["train", "--data", prepared, *SMALL, "--training.num_steps", "2", "--quiet", "--run"]
    assert moeut(*train, "shared")[0] == 0
    assert moeut(*train, "unshared", "--model.group_size", "4")[0] == 0
    scores = {}
    for repeats in ("1", "2", "5"):
        code, out, _ = moeut("evaluate", "shared", "--repeats", repeats, "--json", "--quiet")
        assert code == 0
        scores[repeats] = json.loads(out)
        assert scores[repeats]["num_repeats"] == int(repeats)
        code, out, _ = moeut("generate", "shared", "line", "--repeats", repeats, "--max-new-tokens", "3")
        assert code == 0
    code, out, _ = moeut("evaluate", "shared", "--json", "--quiet")
    assert json.loads(out) == scores["2"]
    assert len({score["cross_entropy"] for score in scores.values()}) == 3
    code, out, _ = moeut("evaluate", "shared", "--repeats", "5", "--quiet")
    assert "each layer ran 5 times" in out
    for verb in ("evaluate", "generate"):
        assert "repeats: this model repeats none of its 4 layers" in mistake(moeut(verb, "unshared", "--repeats", "2"))
        assert "repeats: a layer cannot run 0 times" in mistake(moeut(verb, "shared", "--repeats", "0"))


def test_help_names_every_verb(moeut: Run):
    with pytest.raises(SystemExit) as stop:
        moeut("--help")
    assert stop.value.code == 0


def test_a_closed_pipe_is_met_in_silence(moeut: Run, tmp_path: Path):
    shell = f"{sys.executable} -m moeut describe --preset tiny --json | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{128 + signal.SIGPIPE}\n", "")
