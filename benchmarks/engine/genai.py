# SPDX-License-Identifier: Apache-2.0
# Speed of onnxruntime-genai, for run.ts: python genai.py FOLDER THREADS NEW_TOKENS PREFILL_TOKENS STREAMSxCONTEXT...
# One line of JSON per figure: {"name": "prefill" or "STREAMSxCONTEXT", "rate": tokens per second}.
import json, os, sys, tempfile, time
import numpy as np
import onnxruntime_genai as og

source, threads, new, prefill = sys.argv[1], *map(int, sys.argv[2:5])
random = np.random.default_rng(1)


def generate(model, streams, context, count):
    """Seconds until the first token, and from there to the end of `count` more."""
    params = og.GeneratorParams(model)
    length = context + count + 2
    params.set_search_options(batch_size=streams, max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, params)
    begin = time.perf_counter()
    generator.append_tokens(random.integers(1000, 40000, (streams, context)).astype(np.int32))
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(count):
        generator.generate_next_token()
    return first - begin, time.perf_counter() - first


with tempfile.TemporaryDirectory() as folder:
    for name in os.listdir(source):
        if name != "genai_config.json":
            os.symlink(os.path.abspath(os.path.join(source, name)), os.path.join(folder, name))
    with open(os.path.join(source, "genai_config.json")) as file:
        config = json.load(file)
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    with open(os.path.join(folder, "genai_config.json"), "w") as file:
        json.dump(config, file)
    model = og.Model(folder)
    generate(model, 1, 16, 4)
    seconds, _ = generate(model, 1, prefill, 0)
    print(json.dumps({"name": "prefill", "rate": prefill / seconds}), flush=True)
    for name in sys.argv[5:]:
        streams, context = map(int, name.split("x"))
        _, seconds = generate(model, streams, context, new)
        print(json.dumps({"name": name, "rate": streams * new / seconds}), flush=True)
    # Its threads may hang in exit handlers.
    sys.stdout.flush()
    os._exit(0)
