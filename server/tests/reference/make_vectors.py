"""Writes vectors.json: texts and what sentence-transformers makes of them.

    python3 -m venv venv
    venv/bin/pip install sentence-transformers==6.2.0 transformers==5.23.0 torch==2.11.0
    venv/bin/python make_vectors.py MODEL_FOLDER > vectors.json

Each text is embedded alone, in 32-bit floats on the CPU.
"""

import base64
import json
import platform
import sys

import numpy
import sentence_transformers
import tokenizers
import torch
import transformers

PARAGRAPH = (
    "A sextant measures the angle between two visible objects. Its primary use is to measure the "
    "angle between an astronomical object and the horizon for the purposes of celestial "
    "navigation. The estimation of this angle, the altitude, is known as sighting or shooting the "
    "object, or taking a sight. The angle, and the time when it was measured, can be used to "
    "calculate a position line on a nautical or aeronautical chart. "
)

TEXTS = [
    "",
    " ",
    "\t\n ",
    ".",
    "a",
    "sextant",
    "Sextant",
    "SEXTANT",
    "red shoes",
    "how do I reset my password",
    "best pizza near the station?",
    "What is the capital of Mongolia, and how many people live there?",
    "The quick brown fox jumps over the lazy dog.",
    "The dog is lazy; the fox, quick and brown, jumps over it.",
    "error: cannot borrow `x` as mutable more than once at a time [E0499]",
    "SELECT id, name FROM users WHERE created_at > now() - interval '1 day';",
    "https://example.org/a/b?c=d&e=f#g",
    "3.14159 26535 89793 23846 26433 83279 50288 41971 69399 37510",
    "$1,299.99 (-20 %) -> 1.039,99 \u20ac",
    "Stra\u00dfenbahnhaltestelle in K\u00f6ln-M\u00fclheim",
    "Stra\u00dfenbahn\u0301 e\u0301te\u0301 \u00e9t\u00e9",
    "D\u00e9j\u00e0 vu \u00e0 la cr\u00e8me br\u00fbl\u00e9e",
    "\u041a\u0430\u043a \u0434\u043e\u0431\u0440\u0430\u0442\u044c\u0441\u044f \u0434\u043e \u0432\u043e\u043a\u0437\u0430\u043b\u0430?",
    "\u6771\u4eac\u90fd\u306e\u5929\u6c17\u306f\u3069\u3046\u3067\u3059\u304b",
    "\u4eca\u5929\u5929\u6c14\u600e\u4e48\u6837\uff1f\u6211\u60f3\u53bb\u516c\u56ed\u3002",
    "\uc11c\uc6b8 \ub0a0\uc528",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\U0001f600\U0001f680 to the moon \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1e9\U0001f1ea",
    "zero\u200bwidth\u00a0and\ufeffothers\u0000\u0007\ufffd",
    "[CLS] a text that names [MASK] special [SEP] tokens [PAD]",
    "w" * 99 + " " + "x" * 101,
    "antidisestablishmentarianism floccinaucinihilipilification",
    PARAGRAPH[:150],
    PARAGRAPH,
    PARAGRAPH + "It was invented twice, around 1731, in two countries.",
    PARAGRAPH * 2,
    # Around the limit: the two special tokens make 254 words the longest that is read whole.
    "sea " * 253,
    "sea " * 254,
    "sea " * 255,
    PARAGRAPH * 3 + "The end of this one is not read.",
    PARAGRAPH * 20,
    "\u6d77" * 300,
]


def main() -> None:
    torch.set_num_threads(1)
    model = sentence_transformers.SentenceTransformer(sys.argv[1], device="cpu")
    tokenizer = tokenizers.Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = []
    for text in TEXTS:
        vector = model.encode([text], normalize_embeddings=True)[0].astype("<f4")
        assert abs(numpy.linalg.norm(vector) - 1) < 1e-5, text
        length = len(tokenizer.encode(text).ids)
        texts.append({
            "text": text,
            "tokens": min(length, model.max_seq_length),
            "truncated": length > model.max_seq_length,
            "vector": base64.b64encode(vector.tobytes()).decode(),
        })
    versions = {
        module.__name__: module.__version__
        for module in (sentence_transformers, transformers, tokenizers, torch, numpy)
    }
    versions["python"] = platform.python_version()
    head = {"model": "sentence-transformers/all-MiniLM-L6-v2", "versions": versions}
    print('{"made_with": ' + json.dumps(head) + ', "texts": [')
    print(",\n".join(json.dumps(text) for text in texts))
    print("]}")


main()
