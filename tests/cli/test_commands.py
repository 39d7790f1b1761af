"""From a command line to a resolved job: valid combinations, refused ones, and the names in refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.selectors.model_selector import SELECTORS, ModelSelector
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import LoadError, UsageError
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import BenchJob, ChatJob, Invocation, PromptJob, resolve
from mistralrs_cli.chat_storage.kept_kv import LIMIT_BYTES


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with ``model.gguf`` in it, which is also the default model."""
    (tmp_path / "model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MISTRALRS_DEFAULT_MODEL", str(tmp_path / "model.gguf"))
    return tmp_path


def task(*arguments: str) -> Invocation:
    words = parse(arguments)
    assert words is not None
    return resolve(words)


def local(path: str, architecture: str | None = None) -> ModelSource:
    return ModelSource(architecture, Path(path), None, None)


def remote(repo: str, filename: str, architecture: str | None = None) -> ModelSource:
    return ModelSource(architecture, None, repo, filename)


MISTRAL_REPO = "TheBloke/Mistral-7B-Instruct-v0.1-GGUF"
MISTRAL_FILE = "mistral-7b-instruct-v0.1.Q4_K_M.gguf"


@pytest.mark.parametrize(
    ("words", "source"),
    [
        (["mistral-gguf"], remote(MISTRAL_REPO, MISTRAL_FILE, "mistral")),
        (["llama-gguf"], remote("TheBloke/Llama-2-13B-chat-GGUF", "llama-2-13b-chat.Q4_K_M.gguf", "llama")),
        (["mistral-gguf", "-f", "other.gguf"], remote(MISTRAL_REPO, "other.gguf", "mistral")),
        (["mistral-gguf", "-m", "a/b"], remote("a/b", MISTRAL_FILE, "mistral")),
        (["llama-gguf", "-m", "", "-f", "model.gguf"], local("model.gguf", "llama")),
        (["llama-gguf", "-m", ".", "-f", "model.gguf"], local("model.gguf", "llama")),
        (["llama-gguf", "-m", "sub", "-f", "inner.gguf"], local("sub/inner.gguf", "llama")),
        (["llama-gguf", "-m", "model.gguf", "-f", "model.gguf"], local("model.gguf", "llama")),
        (["gguf", "-f", "model.gguf"], local("model.gguf")),
        (["gguf", "--quantized-filename", "model.gguf", "--quantized-model-id", ""], local("model.gguf")),
        (["gguf", "-m", "a/b@main", "-f", "x/y.gguf"], remote("a/b@main", "x/y.gguf")),
    ],
)
def test_sources(folder: Path, words: list[str], source: ModelSource) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "inner.gguf").touch()
    assert task("-i", *words).source == source


@pytest.mark.parametrize("name", ["mistral-gguf", "llama-gguf", "gguf"])
def test_options_of_a_row(folder: Path, name: str) -> None:
    words = ["-t", "a/tokenizer", "-m", "", "-f", "model.gguf", "--tokenizer-json", "t.json", "--repeat-last-n", "7"]
    found = task("--prompt", "x", name, *words)
    assert found.load.tok_model_id == "a/tokenizer"
    assert found.load.tokenizer_json == Path("t.json")
    assert isinstance(found.job, PromptJob)
    assert found.job.sampling.repeat_last_n == 7
    assert found.source.architecture == SELECTORS[name].architecture


def test_default_model(folder: Path) -> None:
    assert task("-i").source == local(str(folder / "model.gguf"))


def test_defaults_of_the_modes() -> None:
    expected = SamplingParams(
        temperature=0.1, top_k=32, top_p=0.1, frequency_penalty=0.1, presence_penalty=0.1, max_tokens=4096
    )
    chat = task("-i")
    assert isinstance(chat.job, ChatJob)
    assert replace(chat.job.sampling, seed=0) == expected
    assert chat.load == LoadOptions(kv_dir_bytes=LIMIT_BYTES)
    prompt = task("--prompt", "x")
    assert isinstance(prompt.job, PromptJob)
    assert replace(prompt.job.sampling, seed=0) == replace(expected, max_tokens=128)
    assert (prompt.job.copies, prompt.job.append_stdin, prompt.job.truncate) == (1, True, False)
    seeds = {found.job.sampling.seed for found in (task("-i"), task("-i"), task("-i"))}
    assert len(seeds) == 3


def test_every_answer_option_arrives() -> None:
    found = task(
        *("--temperature", "0.5", "--top-k", "0", "--top-p", "0.9", "--min-p", "0.05", "--repeat-penalty", "1.1"),
        *("--frequency-penalty", "-0.5", "--presence-penalty", "0", "--seed", "7", "--max-tokens", "9"),
        *("--stop", "a", "--stop", "b", "--system", "be brief", "--stats", "-t", "--max-seqs", "3"),
        *("--prefix-cache-n", "0", "--no-kv-cache", "-c", "{{ x }}", "--token-source", "none"),
        *("--precision", "high", "--kv-cache-dtype", "f16", "--threads", "1", "-i"),
    )
    sampling = SamplingParams(
        temperature=0.5,
        top_k=0,
        top_p=0.9,
        min_p=0.05,
        repetition_penalty=1.1,
        frequency_penalty=-0.5,
        presence_penalty=0.0,
        seed=7,
        max_tokens=9,
        stop=("a", "b"),
    )
    assert found.job == ChatJob(sampling, "be brief", truncate=True, stats=True, policy="slide")
    assert found.load == LoadOptions(
        max_seqs=3,
        prefix_cache_n=0,
        no_kv_cache=True,
        chat_template="{{ x }}",
        token_source="none",
        precision="high",
        kv_cache_dtype="f16",
        threads=1,
        kv_dir_bytes=LIMIT_BYTES,
    )


def test_drafting_is_left_to_the_model_and_out_of_measurements() -> None:
    for words, chat, bench in (((), None, 0), (("--draft", "0"), 0, 0), (("--draft", "5"), 5, 5)):
        assert task(*words, "-i").load.max_draft == chat
        assert task(*words, "bench").load.max_draft == bench
    assert task("-i", "--no-kv-cache", "--draft", "0").load.max_draft == 0
    drafted = task("--draft-model", "org/small", "bench").load
    assert task("--no-pack", "bench").load.no_pack
    assert (drafted.max_draft, drafted.draft_model) == (None, ModelSource(None, None, "org/small", None))


def test_prompt_options_arrive() -> None:
    found = task("--prompt", "x", "--prompt-concurrency", "20", "--prompt-max-tokens", "5", "--no-stdin")
    assert isinstance(found.job, PromptJob)
    assert (found.job.copies, found.job.sampling.max_tokens, found.job.append_stdin) == (20, 5, False)
    assert found.load.max_seqs == 20  # all of them in one batch
    assert task("--prompt", "x", "--prompt-concurrency", "20", "--max-seqs", "2").load.max_seqs == 2


def test_bench_options_arrive(folder: Path) -> None:
    found = task("--threads", "1", "bench", "-p", "16", "-n", "8", "-c", "1,4", "-r", "2", "--json")
    job = found.job
    assert isinstance(job, BenchJob)
    assert (job.n_prompt, job.n_gen, job.concurrency, job.repetitions, job.json) == (16, 8, (1, 4), 2, True)
    assert (found.load.max_seqs, found.load.prefix_cache_n, found.load.threads) == (4, 0, 1)
    assert found.source.path == folder / "model.gguf"
    named = task("bench", "-p", "16", "gguf", "-f", "model.gguf", "--repeat-last-n", "3")
    assert named.source == local("model.gguf")
    assert isinstance(named.job, BenchJob)
    assert named.job.sampling.repeat_last_n == 3
    assert (named.job.n_prompt, named.job.n_gen, named.job.concurrency, named.job.repetitions) == (16, 128, (1,), 5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say what to do"),
        (["gguf", "-f", "model.gguf"], "say what to do"),
        (["-i", "--prompt", "x"], "-i and --prompt exclude each other"),
        (["-i", "--port", "1"], "-i and --port exclude each other"),
        (["--prompt", "x", "--port", "1"], "--prompt and --port exclude each other"),
        (["-i", "bench"], "-i and bench exclude each other"),
        (["--port", "1234", "bench"], "--port and bench exclude each other"),
        (["-i", "--serve-ip", "::1"], "--serve-ip needs --port"),
        (["--prompt", "x", "-l", "x.log"], "--log needs --port"),
        (["-i", "--prompt-concurrency", "1"], "--prompt-concurrency needs --prompt"),
        (["-i", "--prompt-max-tokens", "1"], "--prompt-max-tokens needs --prompt"),
        (["-i", "--no-stdin"], "--no-stdin needs --prompt"),
        (["--temperature", "1", "gguf", "-f", "model.gguf"], "--temperature needs -i or --prompt"),
        (["--stop", "x"], "--stop needs -i or --prompt"),
        (["--seed", "0", "bench"], "--seed needs -i or --prompt"),
        (["--max-seqs", "16", "bench"], "--max-seqs needs -i or --prompt"),
        (["--no-kv-cache", "bench"], "--no-kv-cache needs -i or --prompt"),
        (["--stats", "bench"], "--stats needs -i or --prompt"),
        (["-i", "--draft", "3", "--no-kv-cache"], "--draft has no effect with --no-kv-cache"),
        (["-i", "--draft-model", "x/y", "--no-kv-cache"], "--draft-model has no effect with --no-kv-cache"),
        (["-i", "--draft-model", "x/y", "--draft", "0"], "--draft-model has no effect with --draft 0"),
        (["--prompt", "x", "--max-tokens", "1", "--prompt-max-tokens", "1"], "say the same"),
        (["--prompt", "-", "--no-stdin"], "--no-stdin forbids it"),
        (["-i", "--top-p", "1.5"], "--top-p 1.5 is out of range"),
        (["-i", "--temperature", "nan"], "--temperature nan is out of range"),
        (["-i", "--temperature", "-1"], "--temperature -1.0 is out of range"),
        (["-i", "--presence-penalty", "inf"], "--presence-penalty inf is out of range"),
        (["-i", "--repeat-penalty", "0"], "--repeat-penalty 0.0 is out of range"),
        (["-i", "--seed", str(2**63)], "--seed 9223372036854775808 is out of range"),
        (["-i", "--seed", "9" * 400], "--seed 999999999999999999999999... is out of range"),
        (["-i", "--top-k", "-2"], "--top-k -2 is out of range"),
        (["-i", "--stop", ""], "--stop '' would stop every answer"),
        (["-i", "--max-tokens", "0"], "--max-tokens 0 is out of range"),
        (["--prompt", "x", "--prompt-max-tokens", "-3"], "--prompt-max-tokens -3 is out of range"),
        (["-i", "--max-seqs", "0"], "'--max-seqs'"),
        (["-i", "--top-k", "x"], "'--top-k'"),
        (["-i", "--precision", "low"], "'--precision'"),
        (["-i", "--kv-cache-dtype", "f64"], "'--kv-cache-dtype'"),
        (["-i", "--kv-cache-dtype", "bf16", "--precision", "high"], "--precision high keeps keys and values in f16"),
        (["--kv-cache-dtype", "f16", "--dtype", "f32", "bench"], "--dtype f32 keeps keys and values in f32"),
        (["-i", "--log-level", "loud"], "'--log-level'"),
        (["-i", "--nonsense"], "--nonsense"),
        (["-i", "gguf"], "gguf needs -f FILE"),
        (["-i", "gguf", "-m", "a/b"], "gguf needs -f FILE"),
        (["-i", "gguf", "model.gguf"], "unexpected extra argument"),
        (["-i", "mistral-gguf", "-f", "model.gguf"], "model.gguf is here, but mistral-gguf looks for it in"),
        (["bench", "-c", "1,x"], "--concurrency 1,x: not a list of counts"),
        (["bench", "-c", "0"], "--concurrency 0: not a list of counts"),
        (["bench", "-p", "0", "-n", "0"], "leave nothing to measure"),
        (["bench", "-n", "1"], "-n 1 measures nothing"),
    ],
)
def test_refused(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        task(*words)
    assert said in refused.value.message
    assert refused.value.hint
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["-i", "mistral-ggf"], "did you mean mistral-gguf?"),
        (["-i", "llama-guff"], "did you mean llama-gguf?"),
        (["bench", "guff"], "did you mean gguf?"),
        (["help", "benhc"], "did you mean bench?"),
        (["chats", "shwo"], "did you mean show?"),
        (["adapter", "zzz"], "the commands are inspect, convert, merge, scalings"),
        (["-i", "zzz"], "mistralrs --help lists the commands"),
        (["-i", "dir/model.gguf"], "write auto dir/model.gguf for a file, a folder or a hub repository"),
        (["-i", "owner/name"], "write auto owner/name for a file, a folder or a hub repository"),
        (["gguf", "-i"], "-i is a global option: it goes before gguf"),
        (["gguf", "-f", "model.gguf", "--prompt", "x"], "--prompt is a global option: it goes before gguf"),
    ],
)
def test_near_misses(words: list[str], hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        task(*words)
    assert refused.value.hint == hint


def test_no_mode_shows_the_commands_to_type() -> None:
    with pytest.raises(UsageError) as refused:
        task("gguf", "-f", "my model.gguf")
    assert refused.value.hint is not None
    commands = [line.split("  ")[0] for line in refused.value.hint.splitlines()]
    assert commands == [
        "mistralrs -i gguf -f 'my model.gguf'",
        "mistralrs --prompt \"...\" gguf -f 'my model.gguf'",
        "mistralrs --port 1234 gguf -f 'my model.gguf'",
        "mistralrs bench gguf -f 'my model.gguf'",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gguf", "-f", "absent.gguf"], "absent.gguf does not exist"),
        (["gguf", "-f", "."], ". is a folder"),
        (["llama-gguf", "-m", ".", "-f", "absent.gguf"], "absent.gguf does not exist"),
        (["llama-gguf", "-m", ""], "llama-2-13b-chat.Q4_K_M.gguf does not exist"),
    ],
)
def test_missing_local_files(words: list[str], said: str) -> None:
    with pytest.raises(LoadError) as refused:
        task("-i", *words)
    assert refused.value.message == said or said in refused.value.message
    assert refused.value.exit_code == 3


def test_rows_fit_the_whole_table() -> None:
    assert list(SELECTORS) == [row.name for row in SELECTORS.values()]
    row = ModelSelector(
        "x-lora-llama-ggml",
        architecture="llama",
        format="ggml",
        adapter="x-lora",
        base_repo="meta-llama/Llama-2-13b-chat-hf",
        quantized_repo="TheBloke/Llama-2-13B-chat-GGML",
        quantized_filename="llama-2-13b-chat.ggmlv3.q4_K_M.bin",
    )
    assert (row.gqa, row.repeat_last_n, row.adapter_repo) == (1, 64, None)
