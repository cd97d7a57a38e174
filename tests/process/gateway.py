#!/usr/bin/env python3
"""stoker-gateway before a real stack: answers as `stoker run` gives them, streams, hang-ups, deaths, bad requests, keys."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import harness
from cli_rig import REPOSITORY, wait_for
from harness import Failure, Stack, expect

MODEL = REPOSITORY / "models/demo"
PROMPT = "def read_file(path):\n"


class Gateway:
    """The gateway of a stack, on a port that nobody else has."""

    def __init__(self, stack, *args):
        self.stack, self.args = stack, args
        self.start()

    def start(self):
        log = self.stack.run_dir / "gateway.log"
        log.unlink(missing_ok=True)
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                [self.stack.bin / "stoker-gateway", "--run-dir", self.stack.run_dir, "--listen", "127.0.0.1:0", *self.args],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.stack.env)
        ready = wait_for("the gateway", lambda: re.search(r"serving http://127\.0\.0\.1:(\d+) and", log.read_text()), 30)
        self.port = int(ready[1])
        return self

    def connect(self, timeout=120):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def call(self, method, path, body=None, headers=None):
        """(status, headers, parsed JSON or text) of one request."""
        with contextlib.closing(self.connect()) as connection:
            return call_on(connection, method, path, body, headers)

    def post(self, path, body, headers=None):
        return self.call("POST", path, body, headers)

    def ok(self, path, body):
        status, _, answer = self.post(path, body)
        expect(status == 200, f"{path}: {status} {answer}")
        return answer

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(timeout=30)

    def metric(self, name):
        text = self.call("GET", "/metrics")[2]
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
        return float(found[1]) if found else None


def call_on(connection, method, path, body=None, headers=None):
    data = json.dumps(body) if isinstance(body, (dict, list)) else body
    connection.request(method, path, data, headers or {})
    response = connection.getresponse()
    text = response.read().decode()
    is_json = response.headers.get("Content-Type", "").startswith("application/json")
    return response.status, response.headers, json.loads(text) if is_json and text else text


def events_of(response):
    """(event name, data) of a stream as they come; comments as ("", ":...")."""
    name = ""
    for line in response:
        line = line.decode().rstrip("\n")
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, line[6:]
            name = ""
        elif line.startswith(":"):
            yield "", line


def stream(connection, path, body):
    connection.request("POST", path, json.dumps({**body, "stream": True}))
    response = connection.getresponse()
    if response.status != 200:
        raise Failure(f"{path}: {response.status} {response.read()!r}")
    expect(response.headers["Content-Type"].startswith("text/event-stream"), f"{response.headers}")
    return response


def completion_text(response):
    text = ""
    done = False
    for _, data in events_of(response):
        if data == "[DONE]":
            done = True
        elif not data.startswith(":"):
            event = json.loads(data)
            expect("error" not in event, f"{event}")
            text += "".join(choice["text"] for choice in event["choices"])
    expect(done, f"the stream ended without [DONE]: {text!r}")
    return text


def greedy(prompt=PROMPT, tokens=40):
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0}


def answers(gateway, stack):
    expect(gateway.call("GET", "/health")[2] == {"status": "ok"}, "health")
    model = gateway.call("GET", "/v1/models")[2]["data"][0]
    expect(model["id"] == "demo" and model["max_model_len"] == 4096, f"{model}")
    expect(gateway.call("GET", "/v1/models/demo")[2] == model, "a model by its id")
    expect(gateway.call("GET", "/v1/models/other")[0] == 404, "a model that is not there")
    reference = stack.ask("--raw", "--temperature", 0, "-n", 40, PROMPT)
    whole = gateway.ok("/v1/completions", greedy())
    expect(whole["choices"][0]["text"] == reference["text"], f"{whole} is not {reference}")
    expect(whole["usage"]["completion_tokens"] == 40 and whole["choices"][0]["finish_reason"] == "length", f"{whole}")
    with contextlib.closing(gateway.connect()) as connection:
        # Both on one connection: a stream ends where it ends.
        for _ in range(2):
            expect(completion_text(stream(connection, "/v1/completions", greedy())) == reference["text"], "streamed")
        expect(call_on(connection, "GET", "/health")[0] == 200, "the connection after a stream")
    ids = gateway.ok("/tokenize", {"content": PROMPT})
    expect(ids["count"] == whole["usage"]["prompt_tokens"] == len(ids["tokens"]), f"{ids} {whole['usage']}")
    again = gateway.ok("/v1/completions", {**greedy(), "prompt": ids["tokens"]})
    expect(again["choices"][0]["text"] == reference["text"], "a prompt of token ids")
    print("answers: as `stoker run` gives them, whole and streamed, from text and from ids", flush=True)


def chat(gateway):
    messages = [{"role": "system", "content": "Write Python."}, {"role": "user", "content": "Read a file."}]
    body = {"messages": messages, "max_tokens": 30, "temperature": 0}
    whole = gateway.ok("/v1/chat/completions", body)
    claude = gateway.ok("/v1/messages", {"model": "claude-any", "system": "Write Python.", "messages": messages[1:],
                                         "max_tokens": 30, "temperature": 0})
    text = whole["choices"][0]["message"]["content"]
    expect(claude["content"][0]["text"] == text and claude["model"] == "claude-any", f"{claude} is not {whole}")
    count = gateway.ok("/v1/messages/count_tokens", {"system": "Write Python.", "messages": messages[1:]})
    expect(count == {"input_tokens": whole["usage"]["prompt_tokens"]}, f"{count}, {whole['usage']}")
    tools = [{"type": "function", "function": {"name": "read", "parameters": {
        "type": "object", "properties": {"path": {"type": "string"}}}}}]
    forced = gateway.ok("/v1/chat/completions", {**body, "tools": tools, "tool_choice": {
        "type": "function", "function": {"name": "read"}}})["choices"][0]
    call = forced["message"]["tool_calls"][0]
    expect(call["function"]["name"] == "read" and isinstance(json.loads(call["function"]["arguments"]), dict), f"{call}")
    with contextlib.closing(gateway.connect()) as connection:
        response = stream(connection, "/v1/messages", {"messages": messages[1:], "max_tokens": 5, "tools": [
            {"name": "read", "input_schema": tools[0]["function"]["parameters"]}], "tool_choice": {"type": "any"}})
        names = [name for name, _ in events_of(response)]
    expect(names[0] == "message_start" and names[-2:] == ["message_delta", "message_stop"], f"{names}")
    print("chat: OpenAI's and Anthropic's forms give the same answer; tools can be demanded", flush=True)


def together(gateway):
    bodies = [greedy(f"def f{i}(x):\n    return", 24) for i in range(8)]
    alone = [gateway.ok("/v1/completions", body)["choices"][0]["text"] for body in bodies]

    def one(body):
        with contextlib.closing(gateway.connect()) as connection:
            return completion_text(stream(connection, "/v1/completions", body))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        expect(list(pool.map(one, bodies)) == alone, "eight streams at a time: other answers than alone")
    print("together: eight streams at a time, the same answers", flush=True)


def hang_up(gateway, stack):
    cancelled = stack.status()["requests"]["cancelled"]
    for streamed in (True, False):
        with contextlib.closing(gateway.connect()) as connection:
            body = {**greedy(tokens=4000), "stream": streamed}
            connection.request("POST", "/v1/completions", json.dumps(body))
            wait_for("decoding", lambda: stack.status()["requests"]["decoding"] > 0)
            if streamed:
                next(events_of(connection.getresponse()))
        wait_for("the end of it", lambda: stack.status()["requests"]["decoding"] == 0, 10)
    expect(stack.status()["requests"]["cancelled"] == cancelled + 2, "both were cancelled")
    expect(gateway.metric("stoker_http_disconnects_total") == 2, "both were counted")
    expect(gateway.metric("stoker_http_generations") == 0, "none is left")
    print("hang-up: the request is cancelled at once, streamed or not", flush=True)


def refused(gateway):
    def error(status, code, path, body, words):
        got, headers, answer = gateway.post(path, body)
        said = answer["error"]
        expect(got == status and said.get("code", said["type"]) == code, f"{path} {body!r:.80}: {got} {answer}")
        expect(re.search(words, said["message"]), f"/{words}/ is not in {said['message']}")
        return headers

    long_prompt = "x " * 6000
    for streamed in (False, True):  # before a stream begins: it has a status of its own
        error(400, "context_length_exceeded", "/v1/completions", {"prompt": long_prompt, "stream": streamed}, "4096")
    error(400, "invalid_request", "/v1/completions", "{]", "not valid JSON")
    error(400, "invalid_request", "/v1/completions", "[" * 100000, "JSON")
    error(400, "invalid_request", "/v1/completions", [], "object")
    error(400, "invalid_request", "/v1/completions", {"prompt": ["a", "b"]}, "one prompt")
    error(400, "invalid_request", "/v1/completions", {"prompt": "a", "n": 2}, "n 2")
    error(400, "invalid_request", "/v1/completions", {"prompt": [99999999]}, "prompt")
    error(400, "invalid_request", "/v1/completions", {"prompt": [16000000]}, "vocabulary")
    error(400, "invalid_request", "/v1/chat/completions", {"messages": [{"content": "x"}]}, "role")
    error(400, "invalid_request", "/v1/chat/completions", {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "x"}}]}]}, "text only")
    error(400, "invalid_request_error", "/v1/messages", {"messages": [{"role": "user", "content": "x"}]}, "max_tokens")
    error(501, "unsupported", "/v1/embeddings", {}, "chat/completions")
    status, headers, _ = gateway.call("GET", "/v1/completions")
    expect(status == 405 and headers["Allow"] == "POST", "GET of what takes POST")
    expect(gateway.call("GET", "/nothing")[0] == 404, "a path that is not there")
    expect(gateway.call("HEAD", "/?beta=true")[0] == 200, "HEAD /")
    print("refused: each with its status, code and a sentence", flush=True)


def raw(gateway, data, shutdown=False):
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        connection.sendall(data)
        if shutdown:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while more := connection.recv(65536):
            answer += more
    return answer


def wire(gateway):
    expect(raw(gateway, b"\x00\x01\x02 nonsense\r\n\r\n").startswith(b"HTTP/1.1 400"), "no HTTP at all")
    big = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100000 + b"\r\n\r\n"
    expect(raw(gateway, big).startswith(b"HTTP/1.1 431"), "a head of 100 kB")
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    expect(raw(gateway, head).startswith(b"HTTP/1.1 413"), "a body of 100 GB")
    old = raw(gateway, b"GET /health HTTP/1.0\r\n\r\n")
    expect(old.startswith(b"HTTP/1.0 200") and old.endswith(b'{"status":"ok"}'), f"HTTP/1.0: {old}")
    body = json.dumps({**greedy(tokens=4), "stream": True}).encode()
    request = b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    expect(raw(gateway, request).endswith(b"data: [DONE]\n\n"), "a stream to HTTP/1.0")
    two = (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
           b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    expect(raw(gateway, two).count(b"HTTP/1.1 200") == 2, "two requests in one packet")
    half = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le"
    expect(raw(gateway, half, shutdown=True).startswith(b"HTTP/1.1 400"), "half a request")
    expect(gateway.call("GET", "/health")[0] == 200, "still there")
    print("wire: malformed, oversized, old and pipelined HTTP", flush=True)


def strangers(gateway):
    post = {"prompt": "x", "max_tokens": 1}
    expect(gateway.post("/v1/completions", post, {"Origin": "http://example.org"})[0] == 403, "a web page's request")
    expect(gateway.post("/v1/completions", post, {"Host": "example.org"})[0] == 403, "another name for this machine")
    expect(gateway.post("/v1/completions", post, {"Host": f"localhost:{gateway.port}"})[0] == 200, "localhost")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(gateway.stack.run_dir / "api.sock"))
        connection.sendall(b"GET /v1/models HTTP/1.0\r\nHost: anything\r\n\r\n")
        expect(connection.recv(100).startswith(b"HTTP/1.0 200"), "through the socket in the run directory")
    mode = (gateway.stack.run_dir / "api.sock").stat().st_mode & 0o777
    expect(mode == 0o600, f"api.sock has mode {mode:o}")
    print("strangers: web pages are refused, the socket is private", flush=True)


def keys(stack, gateway, work):
    key = work / "key"
    key.write_text("correct horse\n")
    expect(gateway.stop() == 0, "SIGTERM")
    with_key = Gateway(stack, "--api-key-file", str(key))
    try:
        expect(with_key.call("GET", "/health")[0] == 200, "health needs no key")
        expect(with_key.call("GET", "/v1/models")[0] == 401, "no key")
        expect(with_key.call("GET", "/v1/models", headers={"x-api-key": "correct hors"})[0] == 401, "a wrong key")
        for headers in ({"x-api-key": "correct horse"}, {"Authorization": "Bearer correct horse"}):
            expect(with_key.call("GET", "/v1/models", headers=headers)[0] == 200, f"{headers}")
    finally:
        with_key.stop()
    gateway.start()
    for args, words in ((["--listen", "0.0.0.0:0"], "key"), (["--listen", "nonsense"], "HOST:PORT"),
                        (["--listen", f"127.0.0.1:{gateway.port}"], "somebody else"),
                        (["--listen", "none"], "another gateway"), (["--api-key-file", "/nothing"], "cannot be read")):
        done = subprocess.run([stack.bin / "stoker-gateway", "--run-dir", stack.run_dir, *args], capture_output=True,
                              text=True, env=stack.env, timeout=30)
        expect(done.returncode != 0 and words in done.stderr, f"{args}: {done}")
    print("keys: asked for, compared, and demanded where other machines could connect", flush=True)


def silence(gateway, stack):
    """A stream is never silent for long: here the worker is stopped in mid-answer."""
    worker = stack.processes["worker"].pid
    with contextlib.closing(gateway.connect()) as connection:
        response = stream(connection, "/v1/completions", greedy(tokens=600))
        events = events_of(response)
        next(events)
        os.kill(worker, signal.SIGSTOP)
        try:
            began = time.monotonic()
            for _, data in events:
                if data == ": ping":
                    break
            else:
                raise Failure("the stream ended without a ping")
            waited = time.monotonic() - began
        finally:
            os.kill(worker, signal.SIGCONT)
        rest = [data for _, data in events]
    expect(rest[-1] == "[DONE]", f"{rest[-1]}")
    print(f"silence: a ping after {waited:.1f} s, then the rest of the answer", flush=True)


def deaths(gateway, stack):
    reference = gateway.ok("/v1/completions", greedy())["choices"][0]["text"]
    with contextlib.closing(gateway.connect()) as connection:
        response = stream(connection, "/v1/completions", greedy(tokens=4000))
        events = events_of(response)
        next(events)
        stack.kill("worker")
        last = [data for _, data in events][-1]
        expect(json.loads(last)["error"]["code"] == "worker_gone", f"the stream's last event: {last}")
        expect(call_on(connection, "GET", "/health")[0] == 503, "health without a worker")
        status, headers, answer = call_on(connection, "POST", "/v1/completions", greedy())
        expect(status == 503 and headers["Retry-After"], f"{status} {answer}")
        expect(gateway.metric("stoker_worker_up") == 0, "stoker_worker_up")
        stack.revive()
        wait_for("the worker", lambda: call_on(connection, "GET", "/health")[0] == 200)
        again = call_on(connection, "POST", "/v1/completions", greedy())[2]
    expect(again["choices"][0]["text"] == reference, "another answer from the next worker")
    with contextlib.closing(gateway.connect()) as connection:
        stream(connection, "/v1/completions", greedy(tokens=4000))
        gateway.process.kill()
        gateway.process.wait()
        wait_for("the end of its request", lambda: stack.status()["requests"]["decoding"] == 0, 30)
    gateway.start()  # over the dead one's socket
    with contextlib.closing(gateway.connect()) as connection:
        response = stream(connection, "/v1/completions", greedy(tokens=4000))
        events = events_of(response)
        next(events)
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        last = [data for _, data in events][-1]
        expect(json.loads(last)["error"]["code"] == "shutting_down", f"{last}")
        expect(gateway.process.wait(timeout=30) == 0, "exit code of an orderly stop")
    waited = time.monotonic() - began
    gateway.start()
    with socket.create_connection(("127.0.0.1", gateway.port)) as half:  # it will never be complete
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        expect(gateway.call("GET", "/health")[0] == 200, "beside half a request")
        expect(gateway.stop() == 0, "exit code with half a request")
    print(f"deaths: worker, gateway; an orderly stop tells the client and takes {waited:.1f} s", flush=True)


def test(args, work):
    stack = Stack(args.bin, MODEL, work, slots=300).start_all()
    gateway = None
    try:
        gateway = Gateway(stack)
        wait_for("health", lambda: gateway.call("GET", "/health")[0] == 200)
        answers(gateway, stack)
        chat(gateway)
        together(gateway)
        hang_up(gateway, stack)
        refused(gateway)
        wire(gateway)
        strangers(gateway)
        keys(stack, gateway, work)
        wait_for("health", lambda: gateway.call("GET", "/health")[0] == 200)
        silence(gateway, stack)
        deaths(gateway, stack)
    finally:
        if gateway is not None and gateway.process.poll() is None:
            gateway.stop(signal.SIGKILL)
        stack.stop()


if __name__ == "__main__":
    sys.exit(harness.main(test))
