"""BERT's word pieces as the paper takes them: text -> the second-to-last layer's vectors, one a piece.

The one import of transformers, whose FlaxBertModel exists up to its version 4.57. The last layer and the pooler are not
computed. BERT sees [CLS] and [SEP] at its ends, as in its pretraining; their vectors are left out, for they are no words and
an alignment has nowhere to put them. The paper says neither this nor whether its BERT was cased; the default here is
bert-base-uncased. Whether a model lowers capitals is read from its own files.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int
from safetensors import SafetensorError, safe_open

from jaxser import devices
from jaxser.digests import digests, text_digest
from jaxser.errors import CallError, WorkError

DEFAULT = "bert-base-uncased"
LAYER = -2
"""Which of BERT's hidden states is taken: the paper's second-to-last."""

CONFIG, VOCABULARY = "config.json", ("tokenizer.json", "vocab.txt")
WEIGHTS = ("model.safetensors", "flax_model.msgpack")
TOKENIZER = "tokenizer_config.json"
OTHERS = (TOKENIZER, "special_tokens_map.json")

TOKENIZERS = ("BertTokenizer", "BertTokenizerFast")
"""What may be said to cut the text. Another one would cut other pieces from it, or need what is not installed."""

LETTERS = {
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
"""What is done to letters before pieces are looked for, by BertTokenizerFast's options: each one's name in tokenizer.json, and
what it takes where it is told nothing, over what that file says."""

VOCABULARY_SIZE = 30_522
"""Pieces where config.json does not say how many, as transformers has it."""

PIECES = {"cpu": 2_048, "accelerator": 32_768}
"""Word pieces that go to one device at once, with their padding."""

STEP = 8
"""Batches are padded to a multiple of so many pieces: each length is compiled once."""


class Model(NamedTuple):
    """A model on disk: what it is by content, and where."""

    folder: Path
    digest: str
    width: int
    letters: Mapping[str, Any]
    """LETTERS as its files have them; empty where its tokenizer.json has other rules than BERT's."""


class Pieces(NamedTuple):
    """One text: its word pieces, their vectors f32[k, d], and how many more pieces there were than BERT takes."""

    words: tuple[str, ...]
    vectors: np.ndarray
    cut: int


def find(name: str, memory: Path) -> Model:
    """The model of that name: a local folder, else one of the Hugging Face hub, fetched on first need.

    `memory` remembers digests of files. Raises CallError where there is no such model, no network, or another kind of model.
    """
    folder = Path(name) if Path(name).is_dir() else _fetched(name)
    if not (folder / CONFIG).is_file():
        raise CallError(f"--text-model {name}: no {CONFIG} in it; {_wanted()}")
    with _damage(name, CONFIG):
        config = _json(folder / CONFIG)
        width, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        rows = int(config.get("vocab_size", VOCABULARY_SIZE))
    if (kind := config.get("model_type")) != "bert":
        raise CallError(f"--text-model {name}: it is a {kind}, and only bert is read")
    if layers < 2:
        raise CallError(f"--text-model {name}: {layers} layer(s), and the second-to-last is wanted")
    if (positions := config.get("position_embedding_type", "absolute")) != "absolute":
        raise CallError(
            f"--text-model {name}: its position_embedding_type is {positions}, and only absolute is read: take another model"
        )
    vocabulary, weights = (_first_of(folder, name, choices) for choices in (VOCABULARY, WEIGHTS))
    files = [folder / CONFIG, vocabulary, weights]
    files += [folder / other for other in OTHERS if (folder / other).is_file()]
    found = digests(files, memory)
    if refused := [path.name for path in files if path not in found]:
        raise CallError(f"--text-model {name}: its {refused[0]} cannot be read: look at who may read it, and at its disk")
    with _damage(name, TOKENIZER):
        said = _json(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else {}
        added = [int(number) for number in said.get("added_tokens_decoder", {})]
    if (kind := said.get("tokenizer_class") or config.get("tokenizer_class") or TOKENIZERS[0]) not in TOKENIZERS:
        raise CallError(
            f"--text-model {name}: its tokenizer_class is {kind}, and only {TOKENIZERS[0]} is read: take another model"
        )
    with _damage(name, vocabulary.name):
        letters, numbers = (_of_json if vocabulary.suffix == ".json" else _of_list)(vocabulary)
        most = max(numbers + added, default=-1) + 1
    if most > rows:
        # jax would take the last row for all that there are not.
        raise CallError(
            f"--text-model {name}: its {vocabulary.name} has {most:,} word pieces, and its {CONFIG} has vocab_size {rows:,}: "
            "take all files from one model"
        )
    letters |= {option: said[option] for option in letters if option in said}
    # What the tokenizer has to be told over its own defaults belongs to the digest: it was not told once, and vectors in stores
    # of that time are of other pieces. All other models keep their digest.
    told = [f"{option} {value}" for option, value in letters.items() if option not in said and value != LETTERS[option][1]]
    digest = text_digest("\n".join([*(f"{path.name} {found[path]}" for path in files), *told]))
    return Model(folder, digest, width, letters)


@contextmanager
def _damage(name: str, file: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CallError(f"--text-model {name}: its {file} is damaged ({error!r})") from None


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _of_json(path: Path) -> tuple[dict[str, Any], list[int]]:
    # The letters and the numbers of all pieces of a tokenizer.json.
    found = _json(path)
    vocabulary, rules = found["model"]["vocab"], found.get("normalizer") or {}
    numbers = [*(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))]
    numbers += [token["id"] for token in found.get("added_tokens", [])]
    known = rules.get("type") == "BertNormalizer"
    return {option: rules.get(key, other) for option, (key, other) in LETTERS.items() if known}, numbers


def _of_list(path: Path) -> tuple[dict[str, Any], list[int]]:
    # The same of a vocab.txt, which says nothing of letters: but capitals that were lowered are in no piece.
    pieces = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    words = [piece for piece in pieces if not re.fullmatch(r"\[.*\]|<.*>", piece)]
    letters = {option: other for option, (_, other) in LETTERS.items()}
    return letters | {"do_lower_case": all(word == word.lower() for word in words)}, [*range(len(pieces))]


def _first_of(folder: Path, name: str, choices: Sequence[str]) -> Path:
    for choice in choices:
        if (folder / choice).is_file():
            return folder / choice
    pickled = "; its pytorch_model.bin is a pickle: save it as safetensors" * (folder / "pytorch_model.bin").is_file()
    raise CallError(f"--text-model {name}: no {' or '.join(choices)} in it{pickled}; {_wanted()}")


def _wanted() -> str:
    return f"a folder must hold {CONFIG}, {' or '.join(VOCABULARY)}, and {' or '.join(WEIGHTS)}"


def _fetched(name: str) -> Path:
    import huggingface_hub  # only here: nothing else needs the network
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    small = [CONFIG, *VOCABULARY, *OTHERS]
    try:
        for weights in WEIGHTS:
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*small, weights]))
            if (folder / weights).is_file():
                break
    except HFValidationError:
        raise CallError(f"--text-model {name}: no such folder, and no name of the Hugging Face hub either") from None
    except LocalEntryNotFoundError:
        raise CallError(
            f"--text-model {name}: not in the hub's cache, and the hub cannot be reached. Put its files into a folder and give "
            f"that: {_wanted()}"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        says = str(error).strip().splitlines()[0]
        raise CallError(f"--text-model {name}: no such folder, and the hub says: {says}") from None
    return folder


@dataclass(frozen=True)
class Encoder:
    """A model in memory, on the local devices."""

    tokenizer: Any
    longest: int
    """Pieces at the most, with the two special ones."""
    hidden: Callable[[Any, Int[Array, "b k"], Int[Array, "b k"]], Float[Array, "b k d"]]
    """Parameters, numbers of pieces and which of them there are -> their vectors."""
    params: Mapping[str, Any]
    mesh: Mesh

    def __call__(self, texts: Sequence[str]) -> Iterator[list[tuple[int, Pieces]]]:
        """The pieces of each text with its number, a batch at a time, longest first.

        Texts of whole batches can be taken away: the others make the batches that they made beside them.
        """
        encoded = self.tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
        cut = [max(0, len(ids) - self.longest) for ids in encoded]
        # The last piece, [SEP], stays where a text is cut.
        encoded = [ids if not more else ids[: self.longest - 1] + ids[-1:] for ids, more in zip(encoded, cut, strict=True)]
        order = sorted(range(len(texts)), key=lambda i: (-len(encoded[i]), i))
        place = 0
        budget = PIECES["cpu" if jax.default_backend() == "cpu" else "accelerator"]
        while place < len(order):
            length = min(self.longest, -(-len(encoded[order[place]]) // STEP) * STEP)
            rows = max(1, budget // length) * self.mesh.size
            some = order[place : place + rows]
            place += rows
            ids, mask = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
            mask[:, 0] = 1  # rows that only fill up the batch: a softmax over nothing would be no number
            for row, i in enumerate(some):
                ids[row, : len(encoded[i])], mask[row, : len(encoded[i])] = encoded[i], 1
            split = NamedSharding(self.mesh, P("batch"))
            vectors, found = np.asarray(self.hidden(self.params, *jax.device_put((ids, mask), split))), []
            for row, i in enumerate(some):
                inside = slice(1, len(encoded[i]) - 1)
                words = tuple(self.tokenizer.convert_ids_to_tokens(encoded[i][inside]))
                found.append((i, Pieces(words, vectors[row, inside].copy(), cut[i])))
            yield found


def load(model: Model) -> Encoder:
    """The model with its last layer left out. Raises WorkError where weights are missing or have other shapes."""
    import transformers  # takes seconds, and only texts not seen before need it

    try:
        with _quiet(transformers):
            config = transformers.BertConfig.from_pretrained(model.folder, local_files_only=True)
            tokenizer = transformers.BertTokenizerFast.from_pretrained(model.folder, local_files_only=True, **model.letters)
            config.num_hidden_layers += LAYER + 1
            flax = transformers.FlaxBertModel(config, add_pooling_layer=False, _do_init=False)
        tensors = _tensors(model.folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise WorkError(f"{model.folder} cannot be read as BERT: {str(error).splitlines()[0]}") from None
    params = jax.tree_util.tree_map_with_path(partial(_wanted_of, tensors, model.folder), flax.params_shape_tree)
    mesh = Mesh(np.array(devices.for_batches()), ("batch",))
    params, hidden = devices.on_all(params, mesh), jax.jit(partial(_hidden, flax.module))
    return Encoder(tokenizer, config.max_position_embeddings, hidden, params, mesh)


def _tensors(folder: Path) -> dict[str, Any]:
    # By flax's names joined with dots, as functions that read: a checkpoint also holds layers and heads that nobody wants.
    if (folder / WEIGHTS[1]).is_file() and not (folder / WEIGHTS[0]).is_file():
        tree = flatten_dict(msgpack_restore((folder / WEIGHTS[1]).read_bytes()), sep=".")
        return {name.removeprefix("bert."): partial(np.asarray, leaf) for name, leaf in tree.items()}
    file = safe_open(folder / WEIGHTS[0], framework="flax")
    return {_flax_name(name): partial(_turned, file, name) for name in file.keys()}  # noqa: SIM118 (it is no dict)


def _flax_name(name: str) -> str:
    """torch's name of a tensor of BERT as flax's. Early checkpoints say gamma and beta."""
    *path, last = name.removeprefix("bert.").split(".")
    norm, embedding = path and path[-1] == "LayerNorm", path and path[-1].endswith("_embeddings")
    weight = "scale" if norm else "embedding" if embedding else "kernel"
    return ".".join([*path, {"weight": weight, "gamma": "scale", "beta": "bias"}.get(last, last)])


def _turned(file: Any, name: str) -> np.ndarray:
    # torch keeps a linear layer's matrix as [out, in].
    tensor = np.asarray(file.get_tensor(name), np.float32)
    return tensor.T if _flax_name(name).endswith(".kernel") else tensor


def _wanted_of(tensors: Mapping[str, Callable[[], np.ndarray]], folder: Path, path: Any, shape: Any) -> np.ndarray:
    name = ".".join(key.key for key in path)
    if name not in tensors:
        raise WorkError(f"{folder} lacks BERT's weights {name}")
    found = np.asarray(tensors[name](), np.float32)
    if found.shape != shape.shape:
        raise WorkError(f"{folder}: {name} has the shape {found.shape}, its configuration says {shape.shape}")
    return found


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    # It warns of weights not used (the layer and the pooler that we leave out) and of its own end of support for Flax.
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _hidden(module: Any, params: Any, ids: Int[Array, "b k"], mask: Int[Array, "b k"]) -> Float[Array, "b k d"]:
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    # Left to itself jax rounds the factors of float32 products on a GPU (TF32) and a TPU (bfloat16). Vectors are computed once
    # and kept: they are to be the model's own, wherever they come from.
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, ids, mask, jnp.zeros_like(ids), positions, None, return_dict=False)[0]
