"""A trainer on data as users bring them: image columns of `datasets`, streams, dicts, files, and models by name."""

import subprocess
import sys

import pytest
from datasets import Dataset, IterableDataset
from PIL import Image

from jrm_plugin import JRMProcessor, RewardScorer, Sample, lora_config, read_preferences
from jrm_plugin.errors import JRMError
from jrm_plugin.integrations.trl import JointRewardConfig, JointRewardTrainer
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.preferences import PreferencePair

ROWS = 6


@pytest.fixture(scope="module")
def images() -> Dataset:
    """Pairs whose images are columns of a data set, each in its own colour."""
    rows = [
        {name: Image.new("RGB", (48, 48), (40 * row, 100 * k, 9)) for k, name in enumerate(("before", "good", "bad"))}
        for row in range(ROWS)
    ]
    return Dataset.from_list([{**row, "prompt": f"make it {k}"} for k, row in enumerate(rows)])


COLUMNS = {"source": "before", "chosen": "good", "rejected": "bad"}


@pytest.fixture
def config(tmp_path):
    """`config(**options)`: one step on the CPU."""

    def make(**options) -> JointRewardConfig:
        defaults = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True, "report_to": "none"}
        defaults |= {"disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "alpha": 0.0}
        return JointRewardConfig(**{**defaults, **options})

    return make


def test_image_columns_to_a_model_in_ten_lines(images, tmp_path):
    trainer = JointRewardTrainer(
        "jrm-tiny",
        args=JointRewardConfig(str(tmp_path / "mine"), max_steps=1, report_to="none", use_cpu=True),
        train_dataset=images,
        columns={"source": "before", "chosen": "good", "rejected": "bad"},
    )
    trainer.train()
    trainer.save_model()
    scorer = RewardScorer.from_pretrained(tmp_path / "mine", device="cpu")
    assert scorer.score([Sample.edit(images[0]["before"], "make it 0", images[0]["good"])])


def test_whatever_holds_the_pairs_the_losses_are_the_same(images, config, tmp_path):
    """A data set, a stream of it, dicts, pairs and a file give the same batches."""
    dicts = [{**row} for row in images]
    pairs = [
        PreferencePair(
            *(Sample.edit(row["before"], row["prompt"], row[side]) for side in ("good", "bad")), labels={"overall": 1}
        )
        for row in images
    ]
    images.save_to_disk(tmp_path / "saved")
    losses = []
    for given in (images, images.to_iterable_dataset(), dicts, pairs, str(tmp_path / "saved")):
        columns = None if given is pairs else COLUMNS
        options = {"per_device_train_batch_size": ROWS // 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-3}
        # Within an epoch: a stream has no end of one, at which a random number is drawn.
        args = config(**options, train_sampling_strategy="sequential", max_steps=2)
        trainer = JointRewardTrainer("jrm-tiny", args=args, train_dataset=given, columns=columns)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 2 and losses[0][0] != losses[0][1]
    assert losses == [losses[0]] * 5


def test_evaluation_takes_what_training_takes(images, config):
    sets = {"train": images, "few": images.select([1, 2])}
    trainer = JointRewardTrainer("jrm-tiny", args=config(), train_dataset=images, eval_dataset=sets, columns=COLUMNS)
    metrics = trainer.evaluate()
    assert {"eval_train_accuracy/overall", "eval_few_rank_loss"} <= metrics.keys()
    assert "eval_accuracy/overall" in trainer.evaluate([{**images[0]}])


def test_a_stream_says_what_is_wrong_when_it_comes(images, config, tmp_path):
    with pytest.raises(
        JRMError, match="a stream has no end that is known before; say how long to train with max_steps"
    ):
        JointRewardTrainer("jrm-tiny", args=config(max_steps=-1), train_dataset=images.to_iterable_dataset())

    def rows():
        yield {**images[0]}
        yield {**images[1], "prompt": "far too long " * 300}

    for workers in (0, 1):
        args = config(max_length=512, dataloader_num_workers=workers, per_device_train_batch_size=1)
        stream = IterableDataset.from_generator(rows, features=images.features)
        trainer = JointRewardTrainer("jrm-tiny", args=args, train_dataset=stream, columns=COLUMNS)
        with pytest.raises(JRMError, match="row 2 of the train set: it has [0-9]+ tokens, more than max_length=512"):
            trainer.train()
    scored = Dataset.from_list([{"prompt": "x", "edited": "a.png", "score": 1.0}]).to_iterable_dataset()
    with pytest.raises(JRMError, match="the rows of the train set belong together, which a stream cannot tell"):
        JointRewardTrainer("jrm-tiny", args=config(), train_dataset=scored)
    with pytest.raises(JRMError, match="the train set is a stream without a row"):
        JointRewardTrainer("jrm-tiny", args=config(), train_dataset=IterableDataset.from_generator(lambda: iter([])))


def test_rows_that_cannot_be_used_are_named(images, config):
    rows = [{**images[0]}, {**images[1], "prompt": ""}]
    with pytest.raises(JRMError, match="the train set, row 2: the instruction .* .1 bad rows in all"):
        JointRewardTrainer("jrm-tiny", args=config(), train_dataset=rows, columns=COLUMNS)
    with pytest.raises(JRMError, match="say columns: .source: before, "):
        JointRewardTrainer(
            "jrm-tiny", args=config(), train_dataset=images, columns={"chosen": "good", "rejected": "bad"}
        )


def test_names_where_a_model_is_named(images, config, backbone_folder, tmp_path):
    processor = JRMProcessor.from_pretrained("jrm-tiny")
    trainer = JointRewardTrainer(
        "jrm-tiny", processing_class=processor, args=config(), train_dataset=images, columns=COLUMNS
    )
    assert trainer.processor is processor
    (again,) = {JointRewardTrainer(trainer.model, args=config(), train_dataset=images, columns=COLUMNS).processor.order}
    assert again == processor.order  # found by the model's name
    folder = backbone_folder("qwen3_vl")
    heads = [
        JointRewardTrainer(folder, args=config(seed=seed), train_dataset=images, columns=COLUMNS).model.reward_head
        for seed in (3, 3, 4)
    ]
    one, same, other = (head.heads[0][0].weight for head in heads)
    assert one.equal(same) and not one.equal(other)
    with pytest.raises(JRMError, match="processing_class must be a JRMProcessor, not a TokenizersBackend"):
        JointRewardTrainer(
            trainer.model, processing_class=processor.tokenizer, args=config(), train_dataset=images, columns=COLUMNS
        )
    with pytest.raises(JRMError, match="this is a JRM checkpoint and no backbone; load it with from_pretrained"):
        JRMProcessor.from_backbone("jrm-tiny")


def test_adapters_have_a_learning_rate_of_their_own(images, config):
    def rate(**options):
        given = (
            {"peft_config": lora_config(JRMProcessor.from_pretrained("jrm-tiny"), r=2)} if options.pop("lora") else {}
        )
        trainer = JointRewardTrainer("jrm-tiny", args=config(**options), train_dataset=images, columns=COLUMNS, **given)
        return trainer.args.learning_rate

    assert [rate(lora=False), rate(lora=True), rate(lora=True, learning_rate=2e-6)] == [2e-6, 1e-4, 2e-6]


def test_no_critiques_are_said_with_what_alpha_then_means(images, config, caplog):
    JointRewardTrainer("jrm-tiny", args=config(alpha=0.7), train_dataset=images, columns=COLUMNS)
    (message,) = caplog.messages
    assert message.startswith("The train set has no critiques, so alpha=0.7 weighs nothing: the loss is 0.3 times the")
    caplog.clear()
    rows = [{**row, "chosen_critique_visual_quality": "sharp"} for row in images]
    JointRewardTrainer("jrm-tiny", args=config(alpha=0.7), train_dataset=rows, columns=COLUMNS)
    JointRewardTrainer("jrm-tiny", args=config(), train_dataset=images, columns=COLUMNS)
    assert not caplog.messages


def test_critiques_of_an_unknown_dimension_are_refused(images, config):
    examples = read_preferences(images, columns=COLUMNS).examples
    pair = PreferencePair(
        examples[0].chosen, examples[0].rejected, {"overall": 1}, chosen_critiques={"beauty": Critique("plain")}
    )
    with pytest.raises(JRMError, match="example 0 of the train set has critiques of beauty; this model writes of inst"):
        JointRewardTrainer("jrm-tiny", args=config(), train_dataset=[pair])


MEMORY = """
import ctypes, gc, io, sys
import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow
from jrm_plugin import PreferencePair, Sample
from jrm_plugin.integrations.trl import JointRewardConfig, JointRewardTrainer

rng = np.random.default_rng(0)
args = JointRewardConfig(sys.argv[1], max_steps=1, use_cpu=True, alpha=0.0, report_to="none", disable_tqdm=True,
                         per_device_train_batch_size=1, gradient_accumulation_steps=1, save_strategy="no")

def picture():
    return Pillow.fromarray(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8))

def stored():
    file = io.BytesIO()
    picture().save(file, "PNG", compress_level=0)
    return {"bytes": file.getvalue(), "path": None}

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))

def train(given):
    JointRewardTrainer("jrm-tiny", args=args, train_dataset=given).train()

def above(given, one):
    train(one)  # what a trainer takes whatever it is given
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is counted from here
    before = status("VmRSS")
    train(given)
    print("above", round(status("VmHWM") - before))

names = ("source", "chosen", "rejected")
features = Features({"prompt": Value("string"), **{name: Image() for name in names}})
rows = Dataset.from_list([{"prompt": "x", **{n: stored() for n in names}} for _ in range(40)], features=features)
above(rows, rows.select([0]))
samples = [(picture(), picture(), picture()) for _ in range(40)]
pairs = [PreferencePair(Sample.edit(s, "x", a), Sample.edit(s, "x", b), {"overall": 1}) for s, a, b in samples]
above(pairs, pairs[:1])
"""


def test_forty_pairs_of_512_pixels_take_less_than_100_mb_above_their_own(tmp_path):
    """As image columns of a data set, and as pictures in memory; the peak above what is there before."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    above = [int(line.split()[1]) for line in finished.stdout.splitlines() if line.startswith("above ")]
    assert len(above) == 2 and max(above) < 100  # MiB
