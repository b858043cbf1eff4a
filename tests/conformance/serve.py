"""`densessm serve` judged by the clients that people use: the `openai` package, and requests in the exact shape in which
lm-evaluation-harness sends them.

    serve.py DENSESSM [--runtime auto|ort|tract] [--lm-eval]

Exports a trained checkpoint, serves it on loopback, and compares every answer with `densessm generate` and `densessm
eval`. With --lm-eval, lm-evaluation-harness itself runs against the server; it has to be installed.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

import openai

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPT = "KING RICHARD:\n"
TEMPLATE = """\
{% for message in messages %}
{{ message['role'].upper() + ':\\n' + message['content'].strip() + '\\n\\n' }}
{% endfor %}
"""
NEW_TOKENS = 24
RUNTIME = ["--runtime", "tract"]


class Server:
    """A `densessm serve` process on a port of its own."""

    def __init__(self, densessm, bundle, *options):
        command = [densessm, "serve", "--bundle", bundle, "--listen", "127.0.0.1:0", *RUNTIME, *options]
        self.process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            found = re.match(r"serving (\S+) on (http://\S+)", line)
            if found:
                self.model, self.url = found.groups()
                break
        else:
            raise SystemExit("the server did not start")
        # The log is read on, so that the server never waits for it.
        self.log = concurrent.futures.ThreadPoolExecutor(1).submit(self.process.stderr.read)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        assert self.process.wait(60) == 0, self.log.result()

    def client(self):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def post(self, path, body):
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    def metric(self, name):
        with urllib.request.urlopen(self.url + "/metrics") as response:
            lines = response.read().decode().splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith(f"densessm_{name} ")))


def generate(densessm, bundle, prompt, tokens=NEW_TOKENS, *options):
    """The text of `densessm generate`."""
    command = [densessm, "generate", "--bundle", bundle, *RUNTIME, "--prompt", prompt, "--json"]
    command += ["--max-new-tokens", tokens, *options]
    output = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    return json.loads(output)["text"]


def check_openai(server, densessm, bundle):
    client = server.client()
    model = client.models.list().data[0].id
    assert model == server.model and client.models.retrieve(model).id == model
    greedy = generate(densessm, bundle, PROMPT)

    whole = client.completions.create(model=model, prompt=PROMPT, max_tokens=NEW_TOKENS, temperature=0)
    assert whole.choices[0].text == greedy, (whole, greedy)
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == NEW_TOKENS

    chunks = list(client.completions.create(
        model=model, prompt=PROMPT, max_tokens=NEW_TOKENS, temperature=0, stream=True,
        stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == greedy
    assert chunks[-1].usage.completion_tokens == NEW_TOKENS and not chunks[-1].choices

    sampled = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=NEW_TOKENS, temperature=0.8, top_p=0.9, seed=5, n=3,
        extra_body={"top_k": 40})
    for index, choice in enumerate(sampled.choices):
        options = ["--temperature", 0.8, "--top-p", 0.9, "--top-k", 40, "--seed", 5 + index]
        assert choice.text == generate(densessm, bundle, PROMPT, NEW_TOKENS, *options), index

    stopped = client.completions.create(model=model, prompt=PROMPT, temperature=0, max_tokens=100, stop=[" and"])
    assert stopped.choices[0].finish_reason == "stop" and " and" not in stopped.choices[0].text

    scored = client.completions.create(model=model, prompt=PROMPT, max_tokens=3, temperature=0, logprobs=2)
    logprobs = scored.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 3
    assert all(own == max(top.values()) for own, top in zip(logprobs.token_logprobs, logprobs.top_logprobs))
    print("openai: completions, streams, choices, stop strings and log-probabilities")


def check_chat(server):
    client = server.client()
    messages = [{"role": "system", "content": "Speak."}, {"role": "user", "content": "Who is there?"}]
    parameters = dict(model=server.model, messages=messages, max_completion_tokens=12, temperature=0)
    whole = client.chat.completions.create(logprobs=True, top_logprobs=3, **parameters)
    content = whole.choices[0].logprobs.content
    assert len(content) == 12 and all(entry.logprob == entry.top_logprobs[0].logprob for entry in content)
    chunks = list(client.chat.completions.create(stream=True, **parameters))
    assert chunks[0].choices[0].delta.role == "assistant"
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == whole.choices[0].message.content != ""
    print("openai: chat, whole and streamed")


def check_errors(server):
    client = server.client()
    for parameters, error, text in [
        (dict(model="other", prompt="a"), openai.NotFoundError, "model"),
        (dict(model=server.model, prompt="a", best_of=4), openai.BadRequestError, "best_of"),
        (dict(model=server.model, prompt="a", presence_penalty=1.0), openai.BadRequestError, "presence_penalty"),
        (dict(model=server.model, prompt="a", extra_body={"guided_json": {}}), openai.BadRequestError, "guided_json"),
        (dict(model=server.model, prompt="a", max_tokens=10**9), openai.BadRequestError, "max_tokens"),
        (dict(model=server.model, prompt="a", n=1000), openai.BadRequestError, "n"),
    ]:
        try:
            client.completions.create(**parameters)
        except error as raised:
            assert text in raised.message and raised.param == text, raised
        else:
            raise AssertionError(f"{parameters} is not an error")
    # Closing a stream frees its slot.
    stream = client.completions.create(model=server.model, prompt=PROMPT, max_tokens=4000, stream=True)
    next(iter(stream))
    stream.close()
    begin = time.monotonic()
    while server.metric("num_requests_running") > 0:
        assert time.monotonic() - begin < 30, "the slot of a closed stream is still taken"
        time.sleep(0.02)
    print("openai: errors, and a stream that is closed")


def check_concurrent(server, densessm, bundle):
    client = server.client()
    prompts = [PROMPT + "Now is the winter of our discontent. " * (index % 4) for index in range(16)]

    def ask(index):
        return client.completions.create(
            model=server.model, prompt=prompts[index], max_tokens=4 + 2 * index, temperature=0).choices[0].text

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(ask, range(16)))
    for index, text in enumerate(texts):
        assert text == generate(densessm, bundle, prompts[index], 4 + 2 * index), index
    print("openai: 16 requests at once have the text of each alone")


def check_evaluation(server, densessm, bundle, folder):
    """The log-likelihood of a text, as lm-evaluation-harness asks for it and as `densessm eval` measures it."""
    whole = (ROOT / "tests/text/shakespeare-heldout.txt").read_text()
    part = folder / "part.txt"
    part.write_text(whole[:3000])
    tokens = server.post("/tokenize", {"prompt": part.read_text()})["tokens"][:400]
    command = [densessm, "eval", "--bundle", bundle, *RUNTIME, "--text", part, "--json"]
    command += ["--window", len(tokens), "--max-tokens", len(tokens)]
    output = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    report = json.loads(output)
    outcome = report.get("evaluation", report)
    expected = -outcome["nats_per_token"] * outcome["tokens"]
    # One request of two prompts, the second cut into context and continuation.
    body = {"model": server.model, "prompt": [tokens, tokens[:100]], "temperature": 0, "max_tokens": 1, "logprobs": 1,
            "seed": 1234, "echo": True}
    choices = sorted(server.post("/v1/completions", body)["choices"], key=lambda choice: choice["index"])
    got = sum(choices[0]["logprobs"]["token_logprobs"][1:-1])
    assert abs(got - expected) <= 1e-4 * abs(expected), (got, expected)
    logprobs = choices[1]["logprobs"]
    context = 60
    for own, top in zip(logprobs["token_logprobs"][context:-1], logprobs["top_logprobs"][context:-1]):
        assert own <= max(top.values())
    assert len(logprobs["token_logprobs"]) == 101 and logprobs["token_logprobs"][0] is None
    first = sum(choices[0]["logprobs"]["token_logprobs"][context:100])
    assert abs(first - sum(logprobs["token_logprobs"][context:-1])) <= 1e-4 * abs(first)
    print(f"lm-evaluation-harness: log-likelihood {got:.4f}, `densessm eval` {expected:.4f}")

    until = {"prompt": [tokens[:20]], "model": server.model, "max_tokens": 64, "temperature": 0, "stop": ["\n\n"],
             "seed": 1234}
    text = server.post("/v1/completions", until)["choices"][0]["text"]
    assert "\n\n" not in text
    print("lm-evaluation-harness: generate_until")


def run_lm_eval(server, bundle):
    arguments = f"base_url={server.url}/v1/completions,model={server.model},tokenizer={bundle},num_concurrent=8"
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments]
    subprocess.run([*command, "--tasks", "lambada_openai", "--limit", "20"], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("densessm", type=pathlib.Path)
    parser.add_argument("--lm-eval", action="store_true", help="run lm-evaluation-harness as well")
    parser.add_argument("--runtime", default="tract", help="runtime of the server and of what it is compared with")
    arguments = parser.parse_args()
    RUNTIME[1] = arguments.runtime
    densessm = arguments.densessm.resolve()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for logits in ["last", "all"]:
            bundle = folder / logits
            model = ROOT / "tests/checkpoints/densemamba-tiny"
            command = [densessm, "export", "--model", model, "--out", bundle, "--logits", logits]
            subprocess.run([str(part) for part in command], check=True, capture_output=True)
            (bundle / "chat_template.jinja").write_text(TEMPLATE)
            with Server(densessm, bundle) as server:
                check_openai(server, densessm, bundle)
                check_chat(server)
                check_errors(server)
                check_concurrent(server, densessm, bundle)
                check_evaluation(server, densessm, bundle, folder)
                if arguments.lm_eval:
                    run_lm_eval(server, bundle)


if __name__ == "__main__":
    main()
