"""Tiny random students of the paper's three families, with the vocabularies and chat templates of the real ones.

The vocabularies come from packages that ship them (the extra `dev`): `llama-models` (Llama 3), `mistral-common`
(Tekken, as in Ministral-8B-Instruct-2410) and `dashscope` (Qwen). They are read, never imported; mistral-common must be
a version that transformers finds too old (below 1.11.5), or loading any Mistral tokenizer would import it and all that
it needs. Two chat templates are those that Unsloth keeps, read from its source; Ministral's is written after what the
published one does: the system message goes before the *last* message, if that is the user's, so a conversation that
ends with an answer has lost it.
"""
import ast
import base64
import importlib.util
import json
from pathlib import Path

import pytest

from smoltraces.files import atomic, sha256
from smoltraces.settings import versions

FAMILIES = ("llama", "ministral", "qwen")
TINY = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=32768)
MINISTRAL_TEMPLATE = """{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' and loop.last and system is defined %}
        {{- '[INST]' + system + '\\n\\n' + message.content + '[/INST]' }}
    {%- elif message.role == 'user' %}
        {{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.role == 'assistant' %}
        {{- message.content + eos_token }}
    {%- else %}
        {{- raise_exception('Only user and assistant roles, and a system message before them') }}
    {%- endif %}
{%- endfor %}"""
CASELESS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
            r"\s*[\r\n]+|\s+(?!\S)|\s+")


def shipped(package: str, file: str) -> Path:
    "A file inside an installed package, which is not imported; the test is skipped without it"
    found = importlib.util.find_spec(package)
    if found is None: pytest.skip(f"the package {package} is not installed (it comes with the extra dev)")
    return Path(found.origin).parent / file


def unsloth_template(name: str) -> str:
    "A chat template of Unsloth's, whose import would take half a minute"
    for node in ast.parse(shipped("unsloth", "chat_templates.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value).replace("{system_message}", "")
    raise LookupError(name)


def ranks(file: Path) -> dict[bytes, int]:
    "A vocabulary in tiktoken's format: a token in base64 and its rank in each line"
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, file.read_bytes().splitlines())}


def merges(vocabulary: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    "Every pair that makes up a token, the token of the lowest rank first"
    found = []
    for token, rank in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None: found.append((rank, left, right, token[:cut], token[cut:]))
    return [pair[3:] for pair in sorted(found)]


def letters() -> dict[int, str]:
    "The character that stands for each byte in byte-level BPE"
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + k) for k, byte in enumerate(unseen)}


def tokenizer_of(vocabulary: dict[bytes, int], pattern: str, first: list[str], last: list[str], bos: str | None,
                 **names):
    "A fast tokenizer whose ids are the special tokens `first`, the vocabulary, the special tokens `last`"
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    table = letters()
    def written(token: bytes) -> str: return "".join(map(table.__getitem__, token))
    ids = {token: k for k, token in enumerate(first)}
    ids |= {written(token): len(first) + rank for token, rank in vocabulary.items()}
    pairs = [(written(left), written(right)) for left, right in merges(vocabulary)]
    tokenizer = Tokenizer(models.BPE(ids, pairs, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in first + last])
    if bos: tokenizer.post_processor = processors.TemplateProcessing(
        f"{bos} $A", f"{bos} $A {bos} $B", [(bos, tokenizer.token_to_id(bos))])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, clean_up_tokenization_spaces=False,
                                   model_max_length=TINY["max_position_embeddings"], **names)


def llama():
    "Llama-3.2-3B-Instruct in small: tied embeddings, scaled rotations; no padding token, as published"
    from transformers import LlamaConfig, LlamaForCausalLM
    named = ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1",
             "finetune_right_pad_id", "reserved_special_token_2", "start_header_id", "end_header_id", "eom_id",
             "eot_id", "python_tag"]
    special = [f"<|{name}|>" for name in named] + [f"<|reserved_special_token_{k}|>" for k in range(3, 248)]
    tokenizer = tokenizer_of(ranks(shipped("llama_models", "llama3/tokenizer.model")), CASELESS % 3, [], special,
                             "<|begin_of_text|>", eos_token="<|eot_id|>",
                             chat_template=unsloth_template("llama31_template"))
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return tokenizer, LlamaForCausalLM, LlamaConfig(
        **TINY, vocab_size=len(tokenizer), tie_word_embeddings=True, rope_parameters=rope,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=None)


def ministral():
    "Ministral-8B-Instruct-2410 in small: heads wider than the hidden size would give, no sliding window"
    from transformers import MistralConfig, MistralForCausalLM
    tekken = json.loads(shipped("mistral_common", "data/tekken_240911.json").read_text(encoding="utf-8"))
    named = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
             "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
             "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]
    n, size = tekken["config"]["default_num_special_tokens"], tekken["config"]["default_vocab_size"]
    special = named + [f"<SPECIAL_{k}>" for k in range(len(named), n)]
    vocabulary = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in tekken["vocab"][:size - n]}
    tokenizer = tokenizer_of(vocabulary, tekken["config"]["pattern"], special, [], "<s>", eos_token="</s>",
                             unk_token="<unk>", pad_token="<pad>", chat_template=MINISTRAL_TEMPLATE)
    return tokenizer, MistralForCausalLM, MistralConfig(
        **TINY, head_dim=32, vocab_size=len(tokenizer), tie_word_embeddings=False, sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e8}, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)


def qwen():
    "Qwen2.5-32B-Instruct in small: biases, and as published more embedding rows than the tokenizer has tokens"
    from transformers import Qwen2Config, Qwen2ForCausalLM
    named = ["endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end",
             "quad_start", "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"]
    tokenizer = tokenizer_of(ranks(shipped("dashscope", "resources/qwen.tiktoken")), CASELESS % 1, [],
                             [f"<|{name}|>" for name in named], None, eos_token="<|im_end|>",
                             pad_token="<|endoftext|>", chat_template=unsloth_template("qwen25_template"))
    return tokenizer, Qwen2ForCausalLM, Qwen2Config(
        **TINY, vocab_size=152064, tie_word_embeddings=False, use_sliding_window=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)


def family(
    name: str, # One of `FAMILIES`
    folder: Path, # Where it is kept, e.g. pytest's cache; it is built again only if this file or a package changed
) -> Path: # Its folder: safetensors, config and fast tokenizer
    "A tiny random student of a family, built in a few seconds"
    import torch
    path, source = Path(folder) / name, f"{sha256(Path(__file__))} {versions('torch', 'transformers')}"
    if (path / "source.txt").is_file() and (path / "source.txt").read_text() == source: return path
    tokenizer, build, config = {"llama": llama, "ministral": ministral, "qwen": qwen}[name]()
    with atomic(path) as temporary:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            build(config).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "source.txt").write_text(source)
    return path
