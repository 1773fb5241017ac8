"""What a checkpoint was trained on: written down in training, and noticed in scoring."""

import pytest
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.model.configuration import JRMConfig
from jrm_plugin.model.trained_on import TrainedOn
from jrm_plugin.records.samples import Sample


def picture(side: int) -> Image.Image:
    return Image.new("RGB", (side, side), "red")


def test_tasks_and_sizes_are_written_down_beside_earlier_ones():
    trained_on = TrainedOn()
    trained_on.record(config := JRMConfig())
    assert (config.trained_tasks, config.trained_pixels) == (None, None)
    trained_on.add(Sample.edit(picture(32), "make it blue", picture(48)), Sample.generation("a cat", picture(16)))
    trained_on.record(config)
    assert config.trained_tasks == ["edit", "generation"] and config.trained_pixels == [16 * 16, 48 * 48]
    assert config.trained_source_images == 1
    later = TrainedOn()
    later.add(Sample.text_response(None, "what is it?", "a cat"))
    later.record(config)
    assert config.trained_tasks == ["edit", "generation", "response"] and config.trained_pixels == [16 * 16, 48 * 48]
    assert JRMConfig.from_dict(config.to_dict()).trained_tasks == config.trained_tasks


@pytest.mark.parametrize("fields", [{"trained_tasks": ["draw"]}, {"trained_pixels": [0, 5]}, {"trained_pixels": 5}])
def test_a_config_with_other_values_is_refused(fields):
    with pytest.raises(JRMError, match="trained_"):
        JRMConfig(**fields)


def test_another_task_and_another_size_are_said_once_each(make_scorer, caplog):
    scorer = make_scorer("qwen2_vl")
    edit, larger = Sample.edit(picture(56), "x", picture(56)), Sample.edit(picture(56), "x", picture(140))
    assert scorer.score([edit, larger, Sample.generation("x", picture(56))]) and not caplog.messages  # not recorded
    scorer.model.config.trained_tasks, scorer.model.config.trained_pixels = ["edit"], [56 * 56, 56 * 56]
    scorer = type(scorer)(scorer.model, scorer.processor)
    scorer.score([edit, Sample.edit(picture(56), "x", picture(112))])
    assert not caplog.messages
    for _ in range(2):
        scorer.score([edit, larger, Sample.generation("x", picture(56)), larger])
    size, task = caplog.messages
    assert "trained on images of 3,136 pixels" in size and "an image of 19,600 pixels is scored" in size
    assert "trained on samples of the task edit; a sample of the task generation is scored" in task


def test_more_source_images_than_in_training_are_said_once(make_scorer, caplog):
    scorer = make_scorer("qwen2_vl")
    scorer.model.config.trained_source_images = 1
    scorer = type(scorer)(scorer.model, scorer.processor)
    scorer.score([Sample.edit(picture(56), "x", picture(56)), Sample.generation("x", picture(56))])
    assert not caplog.messages
    scorer.score([Sample.edit([picture(56)] * 2, "x", picture(56))] * 2)
    (sources,) = caplog.messages
    assert "trained on at most 1 source images a sample; one with 2 is scored" in sources


def test_a_checkpoint_that_writes_no_critiques_says_so_until_it_is_trained_on_some(make_scorer):
    scorer = make_scorer("qwen2_vl", config={"writes_critiques": False})
    with pytest.raises(JRMError, match="writes no critiques: it is converted from a reward model"):
        scorer.critique([Sample.generation("x", picture(56))])
    trained_on = TrainedOn()
    trained_on.record(scorer.model.config)
    assert not scorer.model.config.writes_critiques
    trained_on.critiques = True
    trained_on.record(scorer.model.config)
    assert scorer.critique([Sample.generation("x", picture(56))], max_new_tokens=2)
