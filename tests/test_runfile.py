"""The run file as a user meets it: what loads, and what every fault says."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_lora.config import RunConfig
from mlx_lora.errors import ConfigError
from mlx_lora.runfile import dump_config, load_config
from mlx_lora.runfile.fields import all_sections, all_settings
from mlx_lora.runfile.loader import MAX_INTEGER
from mlx_lora.runfile.peers import OTHER_NAMES, REMARKS

SMALLEST = "model: m\ndata: {train: rows.jsonl}\ntrain: {epochs: 1}\noutput_dir: out\n"


def load(folder: Path, text: str, *overrides: str) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def fault(folder: Path, text: str, *overrides: str) -> tuple[str, str | None]:
    """Message and hint of the ConfigError, with the folder cut off the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return caught.value.message.replace(f"{folder}/", ""), caught.value.hint


def test_the_smallest_run_file_takes_every_other_setting_from_the_schema(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST)
    assert (config.model, config.data.train, config.train.epochs, config.output_dir) == ("m", "rows.jsonl", 1, "out")
    for setting in all_settings().values():
        if not setting.required and setting.path != "train.epochs":
            section = getattr(config, setting.section) if setting.section else config
            assert getattr(section, setting.name) == setting.default, setting.path


def test_relative_paths_stay_as_they_are_written(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST.replace("rows.jsonl", "../data/./rows.jsonl"))
    assert config.data.train == "../data/./rows.jsonl"


@pytest.mark.parametrize("written", ["1e-5", "1.0e-5", "1E-5", "0.00001", "1e-05", ".00001", "+1e-5"])
def test_every_spelling_of_a_learning_rate_is_a_number(tmp_path: Path, written: str) -> None:
    assert load(tmp_path, SMALLEST + f"optimizer: {{learning_rate: {written}}}").optimizer.learning_rate == 1e-5


def test_a_section_whose_lines_are_all_comments_is_empty(tmp_path: Path) -> None:
    assert load(tmp_path, SMALLEST + "lora:\n  # rank: 8\n").lora.rank == 16


def test_all_faults_are_reported_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    text = """\
model: m
rank: 8
data:
  train: rows.jsonl
  max_seq_length: "512"
lora:
  rnak: 3
  layers: -1
train:
  epochs: 3
  epochs: 4
  iters: 100
  gradient_checkpointing: yes
optimizer: adamw
"""
    message, hint = fault(tmp_path, text)
    assert hint is None
    assert message.splitlines() == [
        "run.yaml: output_dir is missing",
        "  hint: output_dir: The adapter folder that this run writes.",
        "run.yaml:2: rank is not a setting",
        "  hint: did you mean lora.rank?",
        'run.yaml:5: data.max_seq_length should be a positive integer, not the text "512"',
        "  hint: write 512",
        "run.yaml:7: lora.rnak is not a setting",
        "  hint: did you mean lora.rank?",
        "run.yaml:8: lora.layers should be all or a positive integer, not -1",
        "  hint: write all",
        "run.yaml:11: train.epochs is given twice, first in line 10",
        "  hint: keep one of the two lines",
        "run.yaml:12: train.iters is not a setting",
        "  hint: did you mean train.steps?",
        'run.yaml:13: train.gradient_checkpointing should be true or false, not the text "yes"',
        "  hint: write true",
        'run.yaml:14: optimizer should be a section of settings, not the text "adamw"',
        "  hint: write optimizer: {name: adamw}",
    ]


FAULTS = [
    ("lora: {alpha: 1_0}", 'lora.alpha should be a positive number, not the text "1_0"', "write 10"),
    ("lora: {dropout: 1}", "lora.dropout should be a number from 0 to below 1, not 1", "lora.dropout: Dropout on"),
    ("lora: {rank: 8.0}", "lora.rank should be a positive integer, not 8.0", "write 8"),
    ("lora: {rank: 8.5}", "lora.rank should be a positive integer, not 8.5", "lora.rank: Rank R of"),
    ("lora: {rank: true}", "lora.rank should be a positive integer, not true", "lora.rank: Rank R of"),
    ("lora: {rank: .nan}", "lora.rank should be a positive integer, not nan", "lora.rank: Rank R of"),
    ("lora: {alpha: .inf}", "lora.alpha should be a positive number, not inf", "lora.alpha: Effective"),
    (
        "lora: {target_modules: q_proj}",
        'lora.target_modules should be all-linear, attention, mlp or a list of text, not the text "q_proj"',
        "write [q_proj]",
    ),
    (
        "lora: {target_modules: all_linear}",
        'lora.target_modules should be all-linear, attention, mlp or a list of text, not the text "all_linear"',
        "write all-linear",
    ),
    ("lora: {target_modules: [q_proj, 3]}", "lora.target_modules[1] should be text, not 3", 'write "3"'),
    ("lora: [rank, 8]", "lora should be a section of settings, not a list", "the settings of lora are method, rank,"),
    (
        "optimizer: {max_grad_norm: 0}",
        "optimizer.max_grad_norm should be a positive number or null, not 0",
        "write null",
    ),
    (
        "optimizer: {name: AdamW}",
        'optimizer.name should be adamw, adam, sgd, adafactor, muon or lion, not the text "AdamW"',
        "write adamw",
    ),
    ("revision: 0123", "revision should be text or null, not 123", 'write "0123"'),
    ("revision: none", 'revision is the text "none"', 'write null for nothing, or "none" in quotes for the word'),
    ("compute: bfloat", "compute should be auto, quantized, float32, float16 or bfloat16", "write bfloat16"),
    ("learning_rate: 1e-5", "learning_rate is not a setting", "did you mean optimizer.learning_rate?"),
    ("lora: {scale: 20.0}", "lora.scale is not a setting", "give lora.alpha instead: alpha = scale × lora.rank"),
    ("wibble: 3", "wibble is not a setting", "at the top stand model, revision, compute, output_dir, data, lora,"),
    ("lora: {wibble: 3}", "lora.wibble is not a setting", "the settings of lora are method, rank, alpha,"),
    ("training: {epochs: 3}", "training is not a setting", "did you mean train?"),
    ("<<: {lora: {rank: 2}}", "<< is not a setting", "at the top stand model,"),
]


@pytest.mark.parametrize(("line", "fact", "hint"), FAULTS)
def test_a_fault_names_place_fact_and_remedy(tmp_path: Path, line: str, fact: str, hint: str | None) -> None:
    message, said = fault(tmp_path, SMALLEST + line)
    assert message.startswith(f"run.yaml:5: {fact}")
    assert said is None if hint is None else str(said).startswith(hint)


@pytest.mark.parametrize("name", ["data.valid", "data.replay_prompts", "train.retention"])
def test_no_name_at_all_is_no_name_of_a_file(tmp_path: Path, name: str) -> None:
    """Found in session 12: train.retention: "" asked the test rows of whatever folder the run was started in."""
    section, _, key = name.partition(".")
    text = SMALLEST.replace(f"{section}: {{", f'{section}: {{{key}: "", ')
    message, hint = fault(tmp_path, text)
    assert (message.partition(": ")[2], hint) == (f'{name} should be text or null, not the text ""', "write null")


def test_no_revision_is_written_null(tmp_path: Path) -> None:
    message, hint = fault(tmp_path, SMALLEST + 'revision: ""\n')
    assert (message.partition(": ")[2], hint) == ('revision should be text or null, not the text ""', "write null")


def test_a_missing_setting_is_reported_at_the_line_of_its_section(tmp_path: Path) -> None:
    text = "model: m\noutput_dir: o\ntrain: {steps: 3}\ndata:\n  valid: v.jsonl\n"
    message, hint = fault(tmp_path, text)
    assert message == "run.yaml:4: data.train is missing"
    assert hint is not None
    assert hint.startswith("train: File")


def test_missing_sections_are_reported_by_what_they_must_hold(tmp_path: Path) -> None:
    message, _ = fault(tmp_path, "model: m\noutput_dir: o\n")
    assert [line for line in message.splitlines() if "hint" not in line] == [
        "run.yaml: data.train is missing",
        "run.yaml: train: give either epochs or steps",
    ]


def test_a_rule_over_two_settings_is_reported_beside_other_faults(tmp_path: Path) -> None:
    text = SMALLEST.replace("{epochs: 1}", "{epochs: 1, steps: 2, batch_size: 0}")
    message, _ = fault(tmp_path, text)
    assert "run.yaml:3: train: give either epochs or steps" in message
    assert "run.yaml:3: train.batch_size should be auto or a positive integer, not 0" in message


def test_a_rule_is_not_repeated_when_the_setting_it_names_is_faulty(tmp_path: Path) -> None:
    assert "either" not in fault(tmp_path, SMALLEST.replace("epochs: 1", "epochs: x"))[0]
    assert "either" not in fault(tmp_path, SMALLEST.replace("epochs: 1", "epoch: 1"))[0]
    assert "either" not in fault(tmp_path, SMALLEST.replace("epochs: 1", "iters: 1"))[0]


def test_thousands_of_faults_are_cut_short(tmp_path: Path) -> None:
    message, _ = fault(tmp_path, SMALLEST + "".join(f"x{number}: 1\n" for number in range(2000)))
    assert message.splitlines()[-1] == "and 1900 more faults"


def test_overrides_change_the_mapping_before_validation(tmp_path: Path) -> None:
    text = SMALLEST + "lora: {rank: 16, alpha: 16}\n"
    config = load(
        tmp_path,
        text,
        "lora.rank=4",
        "lora.rank=8",
        "lora.target_modules=[q_proj, v_proj]",
        "optimizer.learning_rate=1e-5",
        "data.chat_template_args.enable_thinking=false",
        'data.system_prompt="Answer: yes"',
        "revision=",
    )
    assert (config.lora.rank, config.lora.alpha, config.lora.target_modules) == (8, 16.0, ["q_proj", "v_proj"])
    assert config.optimizer.learning_rate == 1e-5
    assert config.data.chat_template_args == {"enable_thinking": False}
    assert config.data.system_prompt == "Answer: yes"
    assert config.revision is None


def test_an_override_mends_a_faulty_line_of_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, SMALLEST + "lora: {rank: many}", "lora.rank=2").lora.rank == 2


OVERRIDE_FAULTS = [
    ("lora.rnak=3", "--set lora.rnak: lora.rnak is not a setting", "did you mean lora.rank?"),
    ("rank=3", "--set rank: rank is not a setting", "did you mean lora.rank?"),
    ("lroa.rank.x=3", "--set lroa.rank.x: lroa is not a setting", "did you mean lora?"),
    ("model.x=3", "--set model.x: model.x is not a setting", "did you mean model?"),
    (
        "lora.rank='8'",
        '--set lora.rank: lora.rank should be a positive integer, not the text "8"',
        "write --set lora.rank=8",
    ),
    ("lora.layers=-1", "--set lora.layers: lora.layers should be all or a", "write --set lora.layers=all"),
    (
        "data.system_prompt=Answer: yes",
        "--set data.system_prompt: data.system_prompt should be text or null, not a mapping",
        "write --set 'data.system_prompt=\"Answer: yes\"'",
    ),
    (
        "data.chat_template_args={enable_thinking: no}",
        '--set data.chat_template_args: data.chat_template_args.enable_thinking is the text "no"',
        'write false, or "no" in quotes for the word',
    ),
    ("data.system_prompt=None", '--set data.system_prompt: data.system_prompt is the text "None"', "write null"),
    (
        "train.steps=10",
        "--set train.steps: train: give either epochs or steps",
        "the file gives the other one: add --set",
    ),
    # Found in session 10: a prompt was cut at its first #, or was none at all, without a word.
    (
        "data.system_prompt=Give the # of goals",
        "--set data.system_prompt: '# of goals' is a comment to YAML, and would be dropped",
        "quotes of its own keep a text whole: --set 'data.system_prompt=\"Give the # of goals\"'",
    ),
    (
        "data.system_prompt=#1 in all things",
        "--set data.system_prompt: '#1 in all things' is a comment to YAML, and would be dropped",
        "quotes of its own keep a text whole: --set 'data.system_prompt=\"#1 in all things\"'",
    ),
    # Found by a review in session 15: the lines of $(cat system.txt) were joined, and &marks dropped, without a word.
    (
        "data.system_prompt=Be brief.\n  Be kind.\n",
        "--set data.system_prompt: YAML would join its lines into one",
        "quotes of its own keep a text whole: --set 'data.system_prompt=\"Be brief.\\n  Be kind.\"'",
    ),
    (
        "data.system_prompt='Be brief.\nBe kind.'",
        "--set data.system_prompt: YAML would join its lines into one",
        "quotes of its own keep a text whole: --set 'data.system_prompt=\"Be brief.\\nBe kind.\"'",
    ),
    (
        "data.system_prompt=&co wins",
        "--set data.system_prompt: '&co' is a mark of YAML's for the value after it, and would be dropped",
        "quotes of its own keep a text whole: --set 'data.system_prompt=\"&co wins\"'",
    ),
    (
        "data.chat_template_args.x.y=1",
        "--set data.chat_template_args.x.y: data.chat_template_args.x should be",
        "",
    ),
    (
        "lora.target_modules=[q_proj] # two",
        "--set lora.target_modules: '# two' is a comment to YAML",
        "quotes of its own",
    ),
    (
        "lora={rank: 4, alpha: 8}",
        "--set lora: would replace the whole section, and what the file says of its other settings",
        "a setting at a time, such as --set lora.rank=4",
    ),
    (
        "data.chat_template_args={think: true, think: false}",
        "--set data.chat_template_args: data.chat_template_args.think is given twice",
        "keep one",
    ),
    ("lora.rank", "--set lora.rank: expected setting=value", "for example --set lora.rank=8"),
    ("=8", "--set =8: expected setting=value", "for example"),
    ("lora..rank=8", "--set lora..rank=8: expected setting=value", "for example"),
    ("train.engine=[plain", "--set train.engine: not YAML: while parsing a flow sequence", "text with YAML's signs"),
]


@pytest.mark.parametrize(("override", "fact", "hint"), OVERRIDE_FAULTS)
def test_a_fault_of_an_override_names_the_flag(tmp_path: Path, override: str, fact: str, hint: str) -> None:
    message, said = fault(tmp_path, SMALLEST, override)
    assert message.startswith(fact)
    assert str(said).startswith(hint)


def test_an_override_may_hold_the_sign_of_a_comment_where_yaml_reads_it(tmp_path: Path) -> None:
    for written, meant in (('"the # of goals"', "the # of goals"), ("'a #b'", "a #b"), ("C#", "C#"), ('"#"', "#")):
        assert load(tmp_path, SMALLEST, f"data.system_prompt={written}").data.system_prompt == meant
    kept = load(tmp_path, SMALLEST, "data.system_prompt=|-\n  Be brief.\n  Be kind.")
    assert kept.data.system_prompt == "Be brief.\nBe kind."
    assert load(tmp_path, SMALLEST, "data.system_prompt=AT&T").data.system_prompt == "AT&T"
    assert load(tmp_path, SMALLEST, 'lora.target_modules=["a #b", c]').lora.target_modules == ["a #b", "c"]


def test_an_override_into_a_section_that_is_none_leaves_the_fault_to_the_file(tmp_path: Path) -> None:
    message, hint = fault(tmp_path, SMALLEST.replace("{train: rows.jsonl}", "rows.jsonl"), "data.train=a.jsonl")
    assert message == 'run.yaml:2: data should be a section of settings, not the text "rows.jsonl"'
    assert hint == "write data: {train: rows.jsonl}"


def test_names_of_other_trainers_lead_to_settings_that_exist() -> None:
    for name, path in OTHER_NAMES.items():
        assert path in all_settings(), name
        assert name not in all_settings(), f"{name} is ours: the table would never be asked"
    known = {*all_settings(), *all_sections(), "metrics.jsonl"}
    for remark in REMARKS.values():
        dotted = {word.strip(":,;()") for word in remark.split() if "." in word.strip(":,;()")}
        assert dotted <= known, remark
    assert not set(OTHER_NAMES) & set(REMARKS)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("save_total_limit", "did you mean train.keep_last?"),
        ("eval_strategy", "did you mean train.eval_every?"),
        ("save_strategy", "did you mean train.save_every?"),
        ("eval_batch_size", "there is no such setting: validation takes train.batch_size"),
    ],
)
def test_names_of_transformers_trainer_lead_to_what_does_the_same(tmp_path: Path, name: str, hint: str) -> None:
    """Found in session 12: eval_batch_size was taken for a misspelt train.batch_size, the others for nothing."""
    assert fault(tmp_path, f"{SMALLEST}{name}: 3\n") == (f"run.yaml:5: {name} is not a setting", hint)


@pytest.mark.parametrize("name", [*OTHER_NAMES, *REMARKS])
def test_a_name_of_another_trainer_gets_its_hint_in_every_section(tmp_path: Path, name: str) -> None:
    for text in (f"{name}: 1", f"lora: {{{name}: 1}}"):
        _, hint = fault(tmp_path, SMALLEST + text)
        assert hint == (REMARKS.get(name) or f"did you mean {OTHER_NAMES[name]}?")


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
FILES = TEXTS.filter(bool)  # names: never empty
CONFIGS = st.builds(
    RunConfig.model_validate,
    st.fixed_dictionaries(
        {
            "model": FILES,
            "revision": st.none() | FILES,
            "data": st.fixed_dictionaries(
                {
                    "train": FILES,
                    "system_prompt": st.none() | TEXTS,
                    "chat_template_args": st.dictionaries(
                        TEXTS, TEXTS | st.booleans() | NUMBERS | st.integers(-MAX_INTEGER, MAX_INTEGER)
                    ),
                }
            ),
            "lora": st.fixed_dictionaries(
                {"alpha": NUMBERS.filter(lambda x: x > 0), "target_modules": st.lists(TEXTS)}
            ),
            "train": st.fixed_dictionaries(
                {"steps": st.integers(1, MAX_INTEGER), "engine": st.just(["shared_prefix"])}
            ),
            "optimizer": st.fixed_dictionaries({"learning_rate": NUMBERS.map(abs)}),
            "output_dir": FILES,
        }
    ),
)


@settings(deadline=None)
@given(config=CONFIGS)
def test_a_dumped_config_loads_equal(config: RunConfig, scratch: Path) -> None:
    text = dump_config(config)
    assert load(scratch, text) == config
    assert RunConfig.model_validate(yaml.safe_load(text)) == config  # other tools read YAML 1.1
