"""What `jrm train` trains, and on what: the fields of its YAML beside those of `JointRewardConfig`."""

from dataclasses import dataclass, field


@dataclass
class TrainArguments:
    """What is trained, and on what.

    Parameters:
        model: a pretrained backbone (hub name or folder), or a JRM checkpoint to go on from.
        train_data: preferences, or texts to learn (with `alpha: 1`), in anything that
            [`jrm_plugin.data.preferences.read_preferences`] reads; of several sets a mapping of paths to weights, or a
            list of mappings with `path`, `weight` and, of a set's own, `columns` and `images_root`.
        streaming: read `train_data` row by row while training, where it is larger than memory.
        shuffle_buffer: of how many rows of a stream the next one is drawn.
        eval_data: the same by name, as a mapping or `name=path` items. Instead of a path it may be a benchmark of
            `jrm eval`, or `benchmark:path` with the place of its data; the numbers of its table are logged too.
        leaks: what to do about images that training and evaluation share: `report` them, `leave_out` the training
            examples that have one, or `ignore` them and do not look.
        corrections: pairs of `train_data` that are left out, turned around or called a tie: a file that `jrm audit`
            proposed.
        columns: what the columns of these data mean, where they have other names than the usual ones.
        images_root: folder that image paths are relative to; by default that of each file.
        strict: whether a bad record stops the run before it starts; otherwise it is left out and listed.
        decode_images: whether every image is decoded before the run; otherwise the header and the end of its file are
            read, which finds all but damage in its middle. Without `strict` every image is decoded in any case.
        dimensions: what is scored; with it, labels and critiques of the data in other dimensions are left out.
        order, sequences: the layout (see docs/architecture.md); these and `dimensions` by default as `JRMProcessor` has
            them.
        rubrics: `full` (the default), `short`, or a JSON file of texts by task and dimension.
        reward_head_widths, reward_head_dropout, reward_head_activation, log_sigma_bound, rope_positions, overall_rule:
            see `JRMConfig`. These and the layout belong to a JRM checkpoint and cannot be given when one is gone on
            from; its dimensions may be repeated.
        lora_r, lora_alpha: train LoRA adapters of this rank and scale instead of all weights.
        load_in_4bit: hold the weights that the adapters adapt in 4 bits, by bitsandbytes (QLoRA); goes with `lora_r`.
    """

    model: str = field(metadata={"help": "Backbone or JRM checkpoint to start from."})
    # `str` for the parser of flags; in a config it may be a mapping or a list.
    train_data: str = field(
        metadata={"help": "Preferences or texts: a file, a datasets folder, a hub name, or several."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read train_data row by row while training."})
    shuffle_buffer: int = field(default=256, metadata={"help": "Rows of a stream that are shuffled."})
    eval_data: list[str] = field(default_factory=list, metadata={"help": "Evaluation sets, as name=path items."})
    leaks: str = field(default="report", metadata={"help": "Images shared with eval_data: report, leave_out, ignore."})
    corrections: str | None = field(default=None, metadata={"help": "Corrections of train_data, as jrm audit writes."})
    columns: dict | None = field(default=None, metadata={"help": "What the columns mean, as {field: column}."})
    images_root: str | None = field(default=None, metadata={"help": "Folder that image paths are relative to."})
    strict: bool = field(default=True, metadata={"help": "Stop at a bad record."})
    decode_images: bool = field(default=False, metadata={"help": "Decode every image before the run."})
    dimensions: list[str] | None = field(default=None, metadata={"help": "What is scored."})
    order: str | None = field(default=None, metadata={"help": "images_first or rubric_first."})
    sequences: str | None = field(default=None, metadata={"help": "joint or per_dimension."})
    rubrics: str | None = field(default=None, metadata={"help": "full, short, or a JSON file."})
    reward_head_widths: list[int] | None = field(default=None, metadata={"help": "Hidden layers of the head."})
    reward_head_dropout: float | None = field(default=None, metadata={"help": "Dropout of the head."})
    reward_head_activation: str | None = field(default=None, metadata={"help": "Activation of the head."})
    log_sigma_bound: list[float] | None = field(default=None, metadata={"help": "Centre and half range of log sigma."})
    rope_positions: str | None = field(default=None, metadata={"help": "mrope or 1d."})
    overall_rule: str | None = field(default=None, metadata={"help": "mean, sum or min of the dimensions' scores."})
    lora_r: int | None = field(default=None, metadata={"help": "Rank of LoRA adapters."})
    lora_alpha: int = field(default=64, metadata={"help": "Scale of LoRA adapters."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Hold what the adapters adapt in 4 bits (QLoRA)."})

    def __post_init__(self):
        for name in ("lora_r", "lora_alpha", "shuffle_buffer"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        if self.leaks not in ("report", "leave_out", "ignore"):
            raise ValueError(f"leaks must be report, leave_out or ignore, got {self.leaks!r}.")
        if self.streaming and self.leaks == "leave_out":
            raise ValueError("leaks: leave_out needs all examples before the run; give it without streaming.")
        if self.corrections is not None and (self.streaming or not isinstance(self.train_data, str)):
            raise ValueError("corrections are of one set in memory; give one path as train_data, without streaming.")
        if self.load_in_4bit and self.lora_r is None:
            raise ValueError("load_in_4bit needs lora_r: weights in 4 bits are not trained, adapters beside them are.")
