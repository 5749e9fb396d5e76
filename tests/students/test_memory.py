"""The memory estimate counts what the real model classes hold, and refuses what cannot fit, with settings that do."""
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from smoltraces.files import read_json, write_json
from smoltraces.settings import InputError, load_settings
from smoltraces.students import memory
from smoltraces.students.memory import (
    GB,
    METHODS,
    PAPER,
    SHAPES,
    available,
    check_fits,
    doctor_rows,
    estimate,
    fit,
    layer_activations,
    shape,
    shape_of,
)
from smoltraces.students.models import EMBEDDED, embedded_student

CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM),
           "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
SMOL = SHAPES["embedded/smollm2-135m-instruct"]


def config_of(name: str):
    "The configuration class of one of the paper's students, with the sizes that the module knows"
    s, (configure, _) = SHAPES[name], dict(zip(PAPER, CLASSES.values(), strict=True))[name]
    return configure(vocab_size=s.vocabulary, hidden_size=s.hidden, intermediate_size=s.intermediate,
                     num_hidden_layers=s.layers, num_attention_heads=s.heads, num_key_value_heads=s.kv_heads,
                     head_dim=s.head_size, tie_word_embeddings=s.tied)


def meta(config):
    with torch.device("meta"): return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", PAPER)
def test_known_shapes_are_those_of_the_models(name):
    config = config_of(name)
    assert sum(p.numel() for p in meta(config).parameters()) == SHAPES[name].parameters
    assert shape_of(config.to_dict()) == SHAPES[name]


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_shapes_are_those_of_their_files(name):
    folder = embedded_student(name)
    assert shape(str(folder)) == shape(name)
    assert sum(p.numel() for p in meta(AutoConfig.from_pretrained(folder)).parameters()) == shape(name).parameters


def test_adapter_is_as_large_as_peft_makes_it():
    from peft import LoraConfig, get_peft_model
    maps = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for name in PAPER:
        model = get_peft_model(meta(config_of(name)), LoraConfig(r=16, target_modules=maps), low_cpu_mem_usage=True)
        assert model.get_nb_trainable_parameters()[0] == SHAPES[name].adapter(16)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize(("rows", "padded"), [(1, 0), (2, 0), (2, 9)])
def test_activations_are_what_autograd_saves(family, rows, padded):
    sizes = dict(vocab_size=100, hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=6,
                 num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)
    configure, build = CLASSES[family]
    model, length = build(configure(**sizes)), 64
    mask, held = torch.ones(rows, length, dtype=torch.long), {}
    mask[0, length - padded:] = 0
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights: held[storage.data_ptr()] = storage.nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(torch.zeros_like(mask), attention_mask=mask, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    counted = 4 * 3 * layer_activations(shape_of(sizes), length, rows, masked=padded > 0)
    assert sum(held.values()) / counted == pytest.approx(1, abs=0.1)


def test_estimate_grows_with_what_costs_memory():
    def total(**how): return estimate(SMOL, **{"method": "lora", "length": 512, **how}).total
    for device in ("cpu", "cuda"):
        assert total(device=device) < total(device=device, length=1024) < total(device=device, length=1024, rows=2)
        assert total(device=device, method="lora") < total(device=device, method="full")
        assert total(device=device, rank=8) < total(device=device, rank=64) < total(device=device, think="tokens")
    alone = dict(device="cuda", engine="trl")
    assert total(device="cuda") < total(**alone) < total(**alone, precision="float32")
    qwen = SHAPES["Qwen/Qwen2.5-32B-Instruct"]
    by = {m: estimate(qwen, m, 2048, device="cuda") for m in METHODS}
    assert by["qlora"].weights < 20 < 61 < by["lora"].weights < by["full"].weights
    assert estimate(qwen, "full", 2048, device="cuda", shards=8).total < by["full"].total / 5


def test_chunks_of_the_logits_adapt_to_the_card():
    llama = SHAPES["meta-llama/Llama-3.2-3B-Instruct"]
    def on(gb): return estimate(llama, "qlora", 8192, device="cuda", room=gb)
    assert on(8).logits < on(80).logits == 4 and on(8).total < 8


@pytest.mark.parametrize(("gpus", "room"), [(0, 3), (0, 6), (0, 40), (1, 8), (1, 24), (1, 80), (8, 80)])
@pytest.mark.parametrize("student", [*PAPER, "embedded/smollm2-135m-instruct"])
def test_what_is_advised_fits(student, gpus, room):
    cfg = load_settings("laptop", students=student, batch_size=48, max_length=4096)
    found = fit(cfg, student, None, (room, "a device"), gpus)
    assert found.fits == (found.mend == "")
    if found.fits or found.mend.startswith("choose"): return
    assert found.mend.startswith("set ")
    advised = dict(part.split(" = ") for part in found.mend.removeprefix("set ").split(" and "))
    again = cfg.model_copy(update={k: v if k == "method" else int(v) for k, v in advised.items()})
    assert fit(again, student, None, (room, "a device"), gpus).fits
    assert 48 % (again.micro_batch_size or 1) == 0


def test_refusal_is_one_sentence(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: (4.0, "RAM"))
    monkeypatch.setattr(memory, "gpu_count", lambda: 0)
    cfg = load_settings("laptop", batch_size=32, max_length=2048)
    with pytest.raises(InputError) as refused: check_fits(cfg, "embedded/smollm2-135m-instruct")
    assert str(refused.value).endswith("RAM has 4.0 GB free: set method = lora and micro_batch_size = 1 and "
                                       "max_length = 1024.") and "\n" not in str(refused.value)
    assert check_fits(cfg.model_copy(update={"batch_size": 1}), "embedded/smollm2-135m-instruct", longest=200).total < 4
    row, = doctor_rows(cfg)
    assert not row["fits"] and row["has"] == 4.0 < row["needs"] and row["mend"].startswith("set ")


def test_doctor_tells_of_students_that_cannot_be_found(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "clip"})
    rows = doctor_rows(load_settings("laptop", students=(str(tmp_path), "nobody/nothing", *PAPER)))
    assert "describes no decoder" in rows[0]["mend"] and "offline = false" in rows[1]["mend"]
    assert [row["needs"] is None for row in rows] == [True, True, False, False, False]
    assert rows[4]["needs"] > rows[3]["needs"] > rows[2]["needs"]


def test_other_students_are_known_by_their_config_alone(monkeypatch, tmp_path):
    import huggingface_hub
    asked = []

    def download(student, name, **_):
        asked.append((student, name))
        write_json(tmp_path / name, config_of(PAPER[1]).to_dict())
        return str(tmp_path / name)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert shape("owner/another-8b", offline=False) == SHAPES[PAPER[1]]
    assert set(asked) == {("owner/another-8b", "config.json")}


def test_experts_count():
    c = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=1000,
             intermediate_size=128, moe_intermediate_size=32, tie_word_embeddings=True)
    dense, sparse = shape_of({**c, "intermediate_size": 32}), shape_of({**c, "num_experts": 8})
    assert sparse.parameters - dense.parameters == 2 * 7 * 3 * 64 * 32


def test_what_is_free_is_the_least_of_the_machine_and_its_container(monkeypatch):
    monkeypatch.setattr(memory, "container_room", lambda: 3 * GB)
    for free, room in ((5 * GB, 3), (2 * GB, 2)):
        monkeypatch.setattr(memory.psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        assert available("cpu") == (room, "RAM")


def test_shape_imports_neither_torch_nor_transformers(tmp_path):
    write_json(tmp_path / "config.json", read_json(embedded_student(EMBEDDED[1]) / "config.json"))
    code = (f"import sys; from smoltraces.students.memory import estimate, shape; estimate(shape({str(tmp_path)!r})); "
            "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
