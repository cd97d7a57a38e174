#!/usr/bin/env python3
"""The gateway as its users' programs see it: asked by OpenAI's and Anthropic's own Python clients, which are installed
into a venv on the spot (--venv DIR; skipped where that cannot be done)."""

import json
import os
import pathlib
import subprocess
import sys

import harness
from harness import expect

HERE = pathlib.Path(__file__).resolve().parent
TOOL = {"type": "function", "function": {"name": "read_file", "description": "Reads a file.", "parameters": {
    "type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}}}
MESSAGES = [{"role": "system", "content": "Write Python."}, {"role": "user", "content": "Read a file."}]


def make_venv(venv):
    """Python of a venv that has the clients; "" and the reason if there is none."""
    python, ready = venv / "bin/python", venv / "ready"
    wanted = (HERE / "sdk-requirements.txt").read_text()
    if ready.exists() and ready.read_text() == wanted:
        return str(python), ""
    for command in ([sys.executable, "-m", "venv", str(venv)],
                    [str(python), "-m", "pip", "install", "-q", "-r", str(HERE / "sdk-requirements.txt")]):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            return "", f"OpenAI's and Anthropic's clients cannot be installed (python3-venv, package index): {last}"
    ready.write_text(wanted)
    return str(python), ""


def openai_client(gateway):
    import openai
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="none", max_retries=0)
    expect([model.id for model in client.models.list()] == ["demo"], "models.list")
    expect(client.models.retrieve("demo").max_model_len == 4096, "models.retrieve")
    ask = dict(model="demo", messages=MESSAGES, max_tokens=30, temperature=0, seed=1)
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    text = whole.choices[0].message.content
    entries = whole.choices[0].logprobs.content
    expect(len(entries) == whole.usage.completion_tokens and len(entries[0].top_logprobs) == 3, f"{whole}")
    expect(bytes(b for e in entries for b in e.bytes).decode().startswith(text), "log-probabilities belong to other tokens")
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    expect("".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text, "streamed: another text")
    expect(chunks[0].choices[0].delta.role == "assistant", "the first delta has no role")
    expect(chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == whole.usage.completion_tokens,
           f"{chunks[-1].usage} is not {whole.usage}")
    expect(chunks[-2].choices[0].finish_reason == "length", f"{chunks[-2]}")
    with client.chat.completions.stream(model="demo", messages=MESSAGES, max_tokens=30, temperature=0) as events:
        said = "".join(event.delta for event in events if event.type == "content.delta")
    expect(said == text, "the client's helper for streams")
    forced = client.chat.completions.create(**ask, tools=[TOOL], tool_choice="required")
    call = forced.choices[0].message.tool_calls[0]
    expect(isinstance(call.function.arguments, str) and call.id.startswith("call_"), f"{call}")
    stops = client.completions.create(model="demo", prompt="def f(x):\n    return", max_tokens=60, temperature=0, stop=["\n"])
    expect(stops.choices[0].finish_reason == "stop" and "\n" not in stops.choices[0].text, f"{stops}")
    for bad, kind in ((dict(ask, n=3), openai.BadRequestError), (dict(ask, temperature=-1), openai.BadRequestError),
                      (dict(ask, messages=[{"role": "user", "content": "x " * 9000}]), openai.BadRequestError)):
        try:
            client.chat.completions.create(**bad)
        except kind as error:
            expect(error.code in ("invalid_request", "context_length_exceeded"), f"{error}")
        else:
            raise harness.Failure(f"not refused: {bad}"[:200])
    print(f"openai {openai.__version__}: models, chat, streams, log-probabilities, tools, stop, errors", flush=True)


def responses_api(gateway):
    import openai
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="none", max_retries=0)
    ask = dict(model="demo", temperature=0, max_output_tokens=30)
    chat = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=30, temperature=0)
    text = chat.choices[0].message.content
    whole = client.responses.create(**ask, instructions=MESSAGES[0]["content"], input=MESSAGES[1]["content"])
    expect(whole.output_text == text, f"{whole} is not {text!r}")
    expect(whole.status == "incomplete" and whole.incomplete_details.reason == "max_output_tokens", f"{whole}")
    expect(whole.usage.input_tokens == chat.usage.prompt_tokens and whole.usage.output_tokens == 30, f"{whole.usage}")
    items = [{"role": "developer", "content": [{"type": "input_text", "text": MESSAGES[0]["content"]}]},
             {"type": "message", "role": "user", "content": MESSAGES[1]["content"]}]
    events = list(client.responses.create(**ask, input=items, stream=True))
    expect([e.sequence_number for e in events] == list(range(len(events))), "numbers of events")
    kinds = [e.type for e in events if e.type != "response.output_text.delta"]
    expect(kinds == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
                     "response.output_text.done", "response.content_part.done", "response.output_item.done",
                     "response.incomplete"], f"{kinds}")
    expect("".join(e.delta for e in events if e.type == "response.output_text.delta") == text, "streamed: another text")
    expect(events[-1].response.output_text == text, f"{events[-1]}")
    tool = {"type": "function", **TOOL["function"]}
    with client.responses.stream(**ask, input=items, tools=[tool, {"type": "web_search"}],
                                 tool_choice={"type": "function", "name": "read_file"}) as stream:
        call = list(stream)[-1].response.output[0]
    expect(call.type == "function_call" and call.name == "read_file" and isinstance(json.loads(call.arguments), dict), f"{call}")
    turns = [*items, {"type": "reasoning", "summary": []},
             {"type": "function_call", "call_id": call.call_id, "name": "read_file", "arguments": '{"path": "a"}'},
             {"type": "function_call_output", "call_id": call.call_id, "output": "x = 1"}]
    later = client.responses.create(**ask, input=turns, tools=[tool])
    function = {"name": "read_file", "arguments": '{"path": "a"}'}
    same = client.chat.completions.create(model="demo", temperature=0, max_tokens=30, tools=[TOOL], messages=[
        *MESSAGES, {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "x = 1"}])
    expect(later.usage.input_tokens == same.usage.prompt_tokens and
           later.output_text == same.choices[0].message.content, f"{later} is not {same}")
    for bad in (dict(ask, input="x", previous_response_id="resp_1"), dict(ask, input=[{"type": "item_reference", "id": "x"}])):
        try:
            client.responses.create(**bad)
        except openai.BadRequestError as error:
            expect("stored" in str(error), f"{error}")
        else:
            raise harness.Failure(f"not refused: {bad}")
    print("openai: responses, whole and streamed, function calls, what is not stored", flush=True)


def anthropic_client(gateway):
    import anthropic
    client = anthropic.Anthropic(base_url=f"http://127.0.0.1:{gateway.port}", api_key="none", max_retries=0)
    ask = dict(model="claude-any", system=MESSAGES[0]["content"], messages=MESSAGES[1:], max_tokens=30,
               extra_body={"temperature": 0})
    whole = client.messages.create(**ask)
    expect(whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 30, f"{whole}")
    with client.messages.stream(**ask) as events:
        text = "".join(events.text_stream)
        final = events.get_final_message()
    expect(text == whole.content[0].text and final.stop_reason == "max_tokens", f"{final} is not {whole}")
    expect(final.usage.output_tokens == 30, f"{final.usage}")
    tools = [{"name": "read_file", "description": "Reads a file.", "input_schema": TOOL["function"]["parameters"]}]
    for choice in ({"type": "any"}, {"type": "tool", "name": "read_file"}):
        with client.messages.stream(**ask, tools=tools, tool_choice=choice) as events:
            block = events.get_final_message().content[0]
        expect(block.type == "tool_use" or choice["type"] == "any", f"{block}")
    turns = [*MESSAGES[1:], {"role": "assistant", "content": [
        {"type": "text", "text": "I read it."}, {"type": "tool_use", "id": "toolu_1", "name": "read_file", "input": {"path": "a"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "x = 1"},
                                     {"type": "text", "text": "Go on."}]}]
    expect(client.messages.create(**{**ask, "messages": turns}, tools=tools).content, "a conversation with tool results")
    count = client.messages.count_tokens(model="any", system=ask["system"], messages=ask["messages"])
    expect(count.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens, f"{count} {whole.usage}")
    stopped = client.messages.create(**{**ask, "max_tokens": 200}, stop_sequences=["\n"])
    expect(stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == "\n", f"{stopped}")
    try:
        client.messages.create(**{**ask, "messages": [{"role": "user", "content": "x " * 9000}]})
    except anthropic.BadRequestError as error:
        expect("4096" in str(error), f"{error}")
    else:
        raise harness.Failure("a prompt longer than the context was not refused")
    print(f"anthropic {anthropic.__version__}: messages, streams, tools, tool results, counting, stop, errors", flush=True)


def test(args, work):
    from gateway import MODEL, Gateway
    stack = harness.Stack(args.bin, MODEL, work, slots=300).start_all()
    gateway = None
    try:
        gateway = Gateway(stack)
        openai_client(gateway)
        responses_api(gateway)
        anthropic_client(gateway)
    finally:
        if gateway is not None:
            gateway.stop()
        stack.stop()


def main():
    argv = sys.argv[1:]
    if "--venv" in argv:
        at = argv.index("--venv")
        venv = pathlib.Path(argv[at + 1]).resolve()
        argv = argv[:at] + argv[at + 2:]
        python, why_not = make_venv(venv)
        if not python:
            print(f"skipped: {why_not}", flush=True)
            return harness.SKIP
        os.execv(python, [python, __file__, *argv])
    return harness.main(test, argv)


if __name__ == "__main__":
    sys.exit(main())
