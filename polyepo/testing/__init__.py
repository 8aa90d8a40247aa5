"""Servers that misbehave as real ones do, for tests of judges, samplers and whatever else talks to them.

`polyepo.testing.judge_server`: a chat-completions server (standard library alone).
`polyepo.testing.vllm_server`: a server with vLLM's interface and a real model behind it (torch and transformers).

Both listen on a free port of the loopback interface while their `with` block lasts. The project's own tests use them;
no other part of the package may.
"""
