"""OpenAI's own Python client, as it comes."""

import asyncio

import openai
import pytest

from shoal_server import seconds
from vocabulary import read_vocabulary

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
KEEP_ON = {"ignore_eos": True}  # so that random weights give as many tokens as asked for


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0,
                       timeout=seconds(30)) as made:
        yield made


def text_of(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_lists_and_retrieves_the_model(client, server):
    models = client.models.list()
    assert [model.id for model in models] == [server.model]
    model = client.models.retrieve(server.model)
    assert (model.id, model.object) == (server.model, "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_chat_completion(client, server):
    reply = client.chat.completions.create(
        model=server.model, messages=MESSAGES, max_tokens=12, extra_body=KEEP_ON)
    assert reply.object == "chat.completion" and reply.model == server.model and reply.id
    [choice] = reply.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length"
    assert reply.usage.completion_tokens == 12
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 12
    assert reply.usage.prompt_tokens > len("Be brief.Who are you?".split())


def test_chat_stream_gives_the_text_of_the_whole_reply(client, server):
    fields = {"model": server.model, "messages": MESSAGES, "max_tokens": 20, "seed": 5,
              "extra_body": KEEP_ON}
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(stream=True, **fields))
    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_chat_stream_ends_with_usage_when_asked_for(client, server):
    chunks = list(client.chat.completions.create(
        model=server.model, messages=MESSAGES, max_completion_tokens=7, stream=True,
        stream_options={"include_usage": True}, extra_body=KEEP_ON))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 7
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_chat_takes_content_as_parts(client, server):
    fields = {"model": server.model, "max_tokens": 8, "temperature": 0}
    parts = [{"type": "text", "text": "Who are"}, {"type": "text", "text": "you?"}]
    whole, cut = (
        client.chat.completions.create(messages=[{"role": "user", "content": content}], **fields)
        for content in ("Who are\nyou?", parts))
    assert whole.usage.prompt_tokens == cut.usage.prompt_tokens
    assert whole.choices[0].message.content == cut.choices[0].message.content


@pytest.mark.parametrize("stop", [None, [], "", [""]])
def test_an_empty_stop_stops_nothing(client, server, stop):
    reply = client.completions.create(
        model=server.model, prompt="go on", max_tokens=5, stop=stop, extra_body=KEEP_ON)
    assert reply.usage.completion_tokens == 5


def test_chat_logprobs(client, server):
    reply = client.chat.completions.create(
        model=server.model, messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True,
        top_logprobs=4, extra_body=KEEP_ON)
    content = reply.choices[0].logprobs.content
    assert len(content) == 6
    for token in content:
        assert len(token.top_logprobs) == 4
        assert token.logprob == max(top.logprob for top in token.top_logprobs) <= 0
        assert token.bytes


def test_completion_and_its_stream(client, server):
    fields = {"model": server.model, "prompt": "Once upon a time", "max_tokens": 16, "seed": 3,
              "extra_body": KEEP_ON}
    whole = client.completions.create(**fields)
    assert whole.object == "text_completion" and whole.usage.completion_tokens == 16
    chunks = list(client.completions.create(stream=True, **fields))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"


def test_several_prompts_and_choices_are_numbered(client, server):
    reply = client.completions.create(
        model=server.model, prompt=["One", "Two", "Three"], n=2, max_tokens=8, seed=1)
    assert [choice.index for choice in reply.choices] == list(range(6))
    alone = client.completions.create(model=server.model, prompt="Two", max_tokens=8, seed=1, n=2)
    assert [choice.text for choice in reply.choices[2:4]] == [
        choice.text for choice in alone.choices]
    assert alone.choices[0].text != alone.choices[1].text


def test_streamed_choices_are_told_apart_by_index(client, server):
    fields = {"model": server.model, "messages": MESSAGES, "n": 3, "seed": 9, "max_tokens": 10,
              "extra_body": KEEP_ON}
    whole = client.chat.completions.create(**fields)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(stream=True, **fields):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_equal_seeds_give_equal_texts(client, server):
    def text(seed):
        return client.completions.create(
            model=server.model, prompt="Roll the dice:", max_tokens=24, temperature=1, seed=seed,
            extra_body=KEEP_ON).choices[0].text
    assert text(11) == text(11)
    assert text(11) != text(12)


@pytest.mark.parametrize("stream", [False, True])
def test_text_ends_before_a_stop_string(client, server, stream):
    fields = {"model": server.model, "prompt": "Stop here", "max_tokens": 40, "temperature": 0,
              "extra_body": KEEP_ON}
    text = client.completions.create(**fields).choices[0].text
    stop = text[len(text) // 2:][:3]
    reply = client.completions.create(stop=["never in it, surely", stop], stream=stream, **fields)
    chunks = list(reply) if stream else [reply]
    assert "".join(chunk.choices[0].text for chunk in chunks) == text[:text.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_chat_takes_every_sampling_field(client, server):
    fields = {"model": server.model, "messages": MESSAGES, "max_tokens": 12, "seed": 4}
    plain = client.chat.completions.create(extra_body=KEEP_ON, **fields)
    changed = client.chat.completions.create(
        presence_penalty=1.5, frequency_penalty=1, user="somebody",
        extra_body=KEEP_ON | {"repetition_penalty": 1.5, "typical_p": 0.5, "min_tokens": 12,
                              "priority": -1, "cache_salt": "x"}, **fields)
    assert changed.usage.completion_tokens == 12
    assert changed.choices[0].message.content != plain.choices[0].message.content


def test_a_logit_bias_forces_a_token(client, server):
    reply = client.completions.create(model=server.model, prompt="Say", max_tokens=6, logprobs=0,
                                      logit_bias={"77": 100}, extra_body=KEEP_ON)
    assert len(set(reply.choices[0].logprobs.tokens)) == 1


def test_only_allowed_tokens_come(client, server, tokenizer_directory):
    vocabulary = read_vocabulary(tokenizer_directory)
    ids = [token for token in range(300, 330) if vocabulary[token].isascii()]
    reply = client.chat.completions.create(
        model=server.model, messages=MESSAGES, max_tokens=20, logprobs=True,
        extra_body={"allowed_token_ids": ids})
    tokens = [bytes(token.bytes) for token in reply.choices[0].logprobs.content]
    assert len(tokens) == 20 and set(tokens) <= {vocabulary[token] for token in ids}


def test_the_best_of_several_comes_first(client, server):
    fields = {"model": server.model, "prompt": "Choose", "max_tokens": 10, "seed": 2,
              "extra_body": KEEP_ON}

    def mean(choice):
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    every = client.completions.create(n=5, logprobs=0, **fields).choices
    reply = client.completions.create(n=2, best_of=5, **fields)
    assert [choice.text for choice in reply.choices] == [
        choice.text for choice in sorted(every, key=mean, reverse=True)[:2]]
    assert all(choice.logprobs is None for choice in reply.choices)
    assert reply.usage.completion_tokens == 50


def test_errors_have_their_own_classes(client, server):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    assert "no-such-model" in error.value.message and error.value.param == "model"
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=server.model, messages=MESSAGES, temperature=9)
    assert error.value.param == "temperature"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=server.model, messages=MESSAGES, max_tokens=10**6)


def test_replies_carry_a_request_id(client, server):
    reply = client.completions.create(model=server.model, prompt="x", max_tokens=1)
    assert reply._request_id


def test_a_key_is_needed_where_one_is_set(start_server, tiny_model):
    guarded = start_server(tiny_model, "--api-key", "open sesame")

    def models(key):
        with openai.OpenAI(base_url=f"{guarded.base_url}/v1", api_key=key, max_retries=0) as client:
            return client.models.list().data

    assert len(models("open sesame")) == 1
    with pytest.raises(openai.AuthenticationError):
        models("open sesam")
    assert guarded.http.get("/metrics").status_code == 401
    assert guarded.http.post("/tokenize", json={"prompt": "x"}).status_code == 401
    assert {guarded.probe(path) for path in ("/livez", "/readyz", "/startupz", "/health")} == {200}
    assert "open sesame" not in guarded.log


def test_asynchronous_client(server):
    async def stream(client, seed):
        chunks = await client.chat.completions.create(
            model=server.model, messages=MESSAGES, max_tokens=16, seed=seed, stream=True,
            extra_body=KEEP_ON)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none",
                                      max_retries=0, timeout=seconds(30)) as client:
            return await asyncio.gather(*(stream(client, seed) for seed in (1, 2, 3, 1)))

    texts = asyncio.run(together())
    assert texts[0] == texts[3] and len(set(texts)) == 3
