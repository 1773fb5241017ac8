"""The forms that send pickles, asked as trainers ask: the numbers are the scorer's, and nothing else gets in."""

import pickle

import httpx
import numpy as np
import pickle_clients as clients
import pytest
import torch
from pictures import encode
from PIL import Image
from scoring_server import ready_server

from jrm_plugin import Sample
from jrm_plugin.correction.shape_editor import draw_samples
from jrm_plugin.server.app import PICKLE_WIRES


@pytest.fixture(scope="module")
def edits() -> list[Sample]:
    return draw_samples(5, seed=3)


@pytest.fixture(scope="module")
def images(edits) -> torch.Tensor:
    """`[N, 3, H, W]` in [0, 1], as a policy's pipeline gives them."""
    arrays = np.stack([np.array(sample.response_images[0]) for sample in edits])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255


@pytest.fixture(scope="module")
def prompts(edits) -> list[str]:
    return [sample.prompt_text for sample in edits]


@pytest.fixture(scope="module")
def sources(edits) -> list[Image.Image]:
    return [sample.prompt_images[0] for sample in edits]


def as_jpeg(image: Image.Image) -> bytes:
    return clients.jpegs(np.array(image)[None])[0]


def mu(scores, dimension: str = "overall") -> list:
    return [pytest.approx(score.mu[dimension], abs=1e-5) for score in scores]


def test_flow_grpo_has_the_scores_of_generations_and_of_edits(reward_server, tiny, edits, images, prompts, sources):
    generated = [Sample.generation(s.prompt_text, as_jpeg(s.response_images[0])) for s in edits]
    assert clients.flow_grpo(reward_server, images, prompts, None) == mu(tiny.score(generated))
    edited = [Sample.edit(as_jpeg(s.prompt_images[0]), s.prompt_text, as_jpeg(s.response_images[0])) for s in edits]
    metadata = {"ref_images": [as_jpeg(source) for source in sources]}
    assert clients.flow_grpo(reward_server, images, prompts, metadata) == mu(tiny.score(edited))


def test_verl_omni_has_a_score_and_a_reason(reward_server, tiny, edits, images):
    made = (images[0] * 255).round().to(torch.uint8)
    sample = Sample.generation("a red circle", as_jpeg(edits[0].response_images[0]))
    assert [clients.verl_omni(reward_server, made, "a red circle")] == mu(tiny.score([sample]))
    with pytest.raises(RuntimeError, match="HTTP 422: the instruction is empty"):
        clients.verl_omni(reward_server, made, " ")


def test_edit_r1_has_the_dimension_that_its_mode_names(reward_server, tiny, edits, images, prompts, sources):
    edited = [Sample.edit(as_jpeg(s.prompt_images[0]), s.prompt_text, as_jpeg(s.response_images[0])) for s in edits]
    scores = tiny.score(edited)
    metadatas = [{"prompt": text, "requirement": "", "seed": np.int64(3)} for text in prompts]
    for mode, dimension in (("logits_non_cot", "overall"), ("visual_quality", "visual_quality")):
        numbers = clients.edit_r1(reward_server, sources, images, tuple(prompts), metadatas, mode)
        assert numbers == mu(scores, dimension)
    content = pickle.dumps({"ref_images": [], "images": [], "prompts": [], "metadatas": []})
    answer = httpx.post(f"{reward_server}/mode/logits_cot", content=content)
    assert answer.status_code == 422
    assert "there is no mode 'logits_cot'; there are logits_non_cot" in pickle.loads(answer.content)["error"]


def test_omnigen2_rl_has_lists_of_one_length(reward_server, tiny, edits, prompts, sources):
    answer = clients.omnigen2_rl(
        reward_server,
        [[source, sources[0]] for source in sources],
        [sample.response_images[0] for sample in edits],
        [clients.instruction(text) for text in prompts[:4]] + [{"instruction": prompts[4], "tag": "color"}],
    )
    twice = [Sample.edit([s.prompt_images[0], sources[0]], s.prompt_text, s.response_images[0]) for s in edits]
    assert answer["scores"] == answer["rewards"] == answer["strict_rewards"] == mu(tiny.score(twice))
    assert answer["reasoning"] == [""] * 5
    assert answer["meta_data"][4] == {"instruction": prompts[4], "tag": "color", "original_index": 4}


PNG = encode(np.zeros((32, 32, 3), np.uint8))
GOOD = {"images": [PNG], "prompts": ["a cat"], "metadata": {}}
WRONG = [
    ("/flow_grpo", [], "a dict with images"),
    ("/flow_grpo", {"prompts": ["a"]}, "a dict with images"),
    ("/flow_grpo", GOOD | {"images": PNG}, "a dict with images, a list"),
    ("/flow_grpo", GOOD | {"prompts": ["a", "b"]}, "prompts must have 1 values"),
    ("/flow_grpo", GOOD | {"prompts": [3]}, "must be text"),
    ("/flow_grpo", GOOD | {"images": ["/etc/hostname"]}, "each of images must be the bytes"),
    ("/flow_grpo", GOOD | {"images": [{"path": "/etc/hostname"}]}, "each of images must be the bytes"),
    ("/flow_grpo", GOOD | {"images": [PNG[:60]]}, "sample 0 cannot be scored"),
    ("/flow_grpo", GOOD | {"images": [np.zeros((2, 2, 7), np.uint8)]}, "shape must be"),
    ("/flow_grpo", GOOD | {"metadata": {"ref_images": ["/etc/hostname"]}}, "each of ref_images must be the bytes"),
    ("/flow_grpo", GOOD | {"metadata": {"source_images": [[PNG, "/etc/hostname"]]}}, "each of source_images"),
    ("/mode/overall", GOOD | {"ref_images": ["/etc/hostname"]}, "each of ref_images must be the bytes"),
    ("/mode/overall", GOOD, "a dict with ref_images"),
    ("/", {"output_image": [PNG], "input_images": [["/etc/hostname"]], "meta_datas": ["{}"]}, "each of input_images"),
    ("/", {"output_image": [PNG], "input_images": [[PNG]], "meta_datas": ["a cat"]}, "meta_datas 0 must be a dict"),
    ("/", {"output_image": [PNG], "input_images": [[PNG]], "meta_datas": ["[" * 9999]}, "meta_datas 0 must be a dict"),
    ("/", {"output_image": [PNG], "input_images": [[PNG]], "meta_datas": [{}]}, "instruction must be text"),
]


@pytest.mark.parametrize(("path", "content", "said"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_a_pickle_that_says_so(reward_server, path, content, said):
    answer = httpx.post(reward_server + path, content=pickle.dumps(content))
    assert answer.status_code == 422 and said in pickle.loads(answer.content)["error"]


def test_a_gadget_is_refused_by_a_server(reward_server, tmp_path):
    class Gadget:
        def __reduce__(self):
            return open, (str(tmp_path / "run"), "w")

    for path in ("/flow_grpo", "/mode/overall", "/"):
        answer = httpx.post(reward_server + path, content=pickle.dumps(GOOD | {"metadata": Gadget()}))
        assert answer.status_code == 422 and "asks for" in pickle.loads(answer.content)["error"]
    assert not (tmp_path / "run").exists()


def test_each_form_is_off_until_it_is_turned_on(brightness):
    paths = {"flow_grpo": "/flow_grpo", "edit_r1": "/mode/overall", "omnigen2_rl": "/"}
    assert {*paths} == {*PICKLE_WIRES}
    for on in [(), ("flow_grpo",)]:
        with ready_server(brightness, pickle_wires=on) as client:
            codes = {name: client.post(path, content=b"x").status_code for name, path in paths.items()}
        assert codes == {name: 422 if name in on else 404 for name in paths}
