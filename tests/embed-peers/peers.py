"""Embeds texts with another library: what `make bench-embed` compares with.

Usage: peers.py ENGINE MODEL SCRATCH THREADS DEVICE

ENGINE is sentence-transformers, sentence-transformers-fp16 (on a GPU), onnx-fp32 or onnx-int8 (on a CPU), MODEL the folder of
the model, SCRATCH a folder in which exported models are kept, DEVICE cpu or cuda:N. Each line of the standard input is {"batches": [[TEXT, …], …], "vectors": BOOL}: the batches
are embedded one after the other. The answer is a line {"seconds": …}, with "vectors" if they were asked for.
"""

import fcntl
import json
import os
import sys
import time

# Nothing is fetched: the model is in a folder.
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"

import numpy
import torch

OPSET = 17


def sentence_transformers(half):
    def start(model, _scratch, threads, device):
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        loaded = SentenceTransformer(model, device=device)
        if half:
            loaded.half()

        def embed(texts):
            return loaded.encode(
                texts, batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False
            )

        return embed

    return start


def onnx(precision):
    def start(model, scratch, threads, _device):
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            exported(model, scratch, precision), options, providers=["CPUExecutionProvider"]
        )
        tokenizer = Tokenizer.from_file(os.path.join(model, "tokenizer.json"))
        with open(os.path.join(model, "sentence_bert_config.json")) as file:
            tokenizer.enable_truncation(json.load(file)["max_seq_length"])
        tokenizer.enable_padding()

        def embed(texts):
            encodings = tokenizer.encode_batch(texts)
            column = lambda name: numpy.array([getattr(one, name) for one in encodings], numpy.int64)
            mask = column("attention_mask")
            inputs = {
                "input_ids": column("ids"),
                "attention_mask": mask,
                "token_type_ids": column("type_ids"),
            }
            (hidden,) = session.run(None, inputs)
            weights = mask[:, :, None].astype(numpy.float32)
            pooled = (hidden * weights).sum(1) / weights.sum(1)
            return pooled / numpy.linalg.norm(pooled, axis=1, keepdims=True)

        return embed

    return start


def exported(model, scratch, precision):
    """The ONNX file of a model, made once: who comes meanwhile, as the other precision does, waits."""
    os.makedirs(scratch, exist_ok=True)
    with open(os.path.join(scratch, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return export(model, scratch, precision)


def export(model, scratch, precision):
    full, wanted = (os.path.join(scratch, f"{name}.onnx") for name in ("fp32", precision))
    if not os.path.exists(full):
        from transformers import AutoModel

        bert = AutoModel.from_pretrained(model, attn_implementation="eager").eval()

        class Hidden(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.bert = bert

            def forward(self, ids, mask, types):
                inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
                return self.bert(**inputs, use_cache=False).last_hidden_state

        names = ["input_ids", "attention_mask", "token_type_ids"]
        axes = {name: {0: "texts", 1: "tokens"} for name in [*names, "last_hidden_state"]}
        ones = torch.ones(2, 8, dtype=torch.int64)
        torch.onnx.export(
            Hidden(), (ones, ones, ones * 0), full + ".part", input_names=names,
            output_names=["last_hidden_state"], dynamic_axes=axes, opset_version=OPSET, dynamo=False,
        )
        os.rename(full + ".part", full)
    if not os.path.exists(wanted):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(full, wanted + ".part", weight_type=QuantType.QInt8)
        os.rename(wanted + ".part", wanted)
    return wanted


ENGINES = {
    "sentence-transformers": sentence_transformers(half=False),
    "sentence-transformers-fp16": sentence_transformers(half=True),
    "onnx-fp32": onnx("fp32"),
    "onnx-int8": onnx("int8"),
}


def main(engine, model, scratch, threads, device):
    # What libraries print must not come between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    embed = ENGINES[engine](model, scratch, int(threads), device)
    with torch.inference_mode():
        for line in sys.stdin:
            asked = json.loads(line)
            begin = time.perf_counter()
            rows = [embed(batch) for batch in asked["batches"]]
            answer = {"seconds": time.perf_counter() - begin}
            if asked.get("vectors"):
                answer["vectors"] = numpy.concatenate(rows).astype(float).tolist()
            print(json.dumps(answer), file=answers, flush=True)


main(*sys.argv[1:])
