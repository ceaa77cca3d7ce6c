"""The libraries whose embeddings are compared, behind one interface: see worker.py.

`embed(texts)` and `query(text, repeat)` take texts and give vectors: tokens, padding, pooling and length 1 are inside the timer.
"""

import json
import os
import statistics
import time

from worker import Peer, peak_bytes

BATCHES = (1, 4, 8, 16, 32, 64)  # texts


class Embedder(Peer):
    """What it adds: `encode(texts)` and, where one text has a way of its own, `encode_one(text)`."""

    least_cosine = None  # of vectors to the reference's; None: they are the same but for the order of sums

    def encode_one(self, text):
        return self.encode([text])

    def embed(self, texts):
        start = time.perf_counter()
        vectors = self.encode(texts)
        return time.perf_counter() - start, vectors

    def query(self, text, repeat):
        """The median of a few in a row."""
        seconds = []
        for _ in range(repeat):
            start = time.perf_counter()
            vector = self.encode_one(text)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds), vector


class MetalCandle(Embedder):
    quantization = None

    def __init__(self, library, host, directory, threads):
        import c_abi

        self.bytes_before = peak_bytes()
        self.library = c_abi.Library(library, host)
        self.version = self.library.version_string().decode()
        self.model = c_abi.Model(self.library, directory, quantization=self.quantization)
        self.encode, self.encode_one = self.model.embed_batch, self.model.embed

    def close(self):
        self.model.free()
        self.library.expect_no_live_objects()


class MetalCandleQ8(MetalCandle):
    """Weights of 8 bits, activations of two bytes: what vectors turn by is the rounding of weights."""

    quantization, least_cosine = "q8_0", 0.9995


class SentenceTransformers(Embedder):
    def __init__(self, directory, threads):
        os.environ["HF_HUB_OFFLINE"] = "1"
        import sentence_transformers
        import torch
        import transformers

        self.bytes_before = peak_bytes()
        self.version = f"{sentence_transformers.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self.model = sentence_transformers.SentenceTransformer(os.fspath(directory), device="cpu")

    def settings(self, method):
        return BATCHES if method == "embed" else BATCHES[:1]

    def use(self, batch):
        self.batch = batch

    def encode(self, texts):
        return self.model.encode(texts, batch_size=self.batch, show_progress_bar=False)


class Padded(Embedder):
    """A graph that takes ids and mask: texts go in batches of like length, each padded to its longest."""

    def __init__(self, directory, graphs):
        import numpy
        import tokenizers

        self.numpy, self.graphs = numpy, graphs
        if missing := [path for path in graphs.values() if not path.exists()]:
            raise FileNotFoundError(f"no {missing[0]}: run benches/make_onnx.py to see why")
        self.tokenizer = tokenizers.Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_tokens(directory))

    def encode(self, texts):
        encodings = self.tokenizer.encode_batch(texts)
        lengths = self.numpy.array([len(encoding.ids) for encoding in encodings])
        longest_first = self.numpy.argsort(-lengths, kind="stable")
        batches = [longest_first[at : at + self.batch] for at in range(0, len(texts), self.batch)]
        out = self.numpy.empty((len(texts), self.dim), self.numpy.float32)
        self.run(((rows, self.feed([encodings[row].ids for row in rows])) for rows in batches), out)
        return out

    def encode_one(self, text):
        return self.forward(self.feed([self.tokenizer.encode(text).ids]))

    def feed(self, batch):
        ids = self.numpy.zeros((len(batch), len(batch[0])), self.numpy.int64)  # (B, T)
        mask = self.numpy.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def run(self, batches, out):
        for rows, feed in batches:
            out[rows] = self.forward(feed)


class OnnxRuntime(Padded):
    choice = ("exported", "fused")  # of graphs

    def __init__(self, directory, threads, graphs):
        import onnxruntime

        super().__init__(directory, graphs)
        self.ort, self.bytes_before, self.name = onnxruntime, peak_bytes(), None
        self.version = onnxruntime.__version__
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL

    def settings(self, method):
        return [(graph, batch) for graph in self.choice for batch in (BATCHES if method == "embed" else BATCHES[:1])]

    def use(self, setting):
        name, self.batch = setting
        if name != self.name:
            self.name = name
            self.session = self.ort.InferenceSession(self.graphs[name], self.options, ["CPUExecutionProvider"])
            self.dim = self.session.get_outputs()[0].shape[1]

    def forward(self, feed):
        return self.session.run(None, feed)[0]


class OnnxRuntime32(OnnxRuntime):
    """As sentence-transformers drives it if nobody tells it otherwise: the graph as exported, 32 texts at a time."""

    def settings(self, method):
        return [("exported", 32 if method == "embed" else 1)]


class OnnxRuntimeInt8(OnnxRuntime):
    """Its dynamic quantisation: weights and activations of 8 bits, a scale for each row of weights."""

    choice, least_cosine = ("int8",), 0.95


class OpenVino(Padded):
    HINTS = ("LATENCY", "THROUGHPUT")  # one request on all threads, or one a thread
    precision = "f32"  # its own choice is BF16 where the processor has it

    def __init__(self, directory, threads, graphs):
        import openvino

        super().__init__(directory, graphs)
        self.openvino, self.bytes_before, self.threads, self.hint = openvino, peak_bytes(), threads, None
        self.version = openvino.__version__
        # As exported: operators that only ONNX Runtime knows mean nothing here.
        self.core, self.graph = openvino.Core(), graphs["exported"]

    def settings(self, method):
        if method == "embed":
            return [(hint, batch) for hint in self.HINTS for batch in BATCHES]
        return [("LATENCY", 1)]

    def use(self, setting):
        hint, self.batch = setting
        if hint == self.hint:
            return
        self.hint = hint
        config = {
            "PERFORMANCE_HINT": hint,
            "NUM_STREAMS": 1 if hint == "LATENCY" else self.threads,
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": self.precision,
        }
        self.model = self.core.compile_model(self.graph, "CPU", config)
        self.dim = self.model.output(0).partial_shape[1].get_length()
        self.queue = self.openvino.AsyncInferQueue(self.model, config["NUM_STREAMS"])

    def run(self, batches, out):
        def keep(request, rows):
            out[rows] = request.get_output_tensor(0).data

        self.queue.set_callback(keep)
        for rows, feed in batches:
            self.queue.start_async(feed, rows)
        self.queue.wait_all()

    def forward(self, feed):
        return self.model(feed)[0]


class OpenVinoBf16(OpenVino):
    precision, least_cosine = "bf16", 0.99


EMBEDDERS = {
    "metal-candle": MetalCandle,
    "metal-candle q8_0": MetalCandleQ8,
    "onnxruntime": OnnxRuntime,
    "onnxruntime-32": OnnxRuntime32,
    "sentence-transformers": SentenceTransformers,
    "onnxruntime int8": OnnxRuntimeInt8,
    "openvino": OpenVino,
    "openvino bf16": OpenVinoBf16,
}


def max_tokens(directory):
    """Of one text; what is longer is cut."""
    with open(os.path.join(directory, "sentence_bert_config.json")) as file:
        return json.load(file)["max_seq_length"]
