"""Names are safe parts of paths, whatever they were made of."""

from hypothesis import given
from hypothesis import strategies as st

from polyepo.names import is_name, name_of, slug


@given(st.text())
def test_what_is_made_of_any_text_is_a_name(text):
    assert is_name(f"{name_of(text, longest=80, otherwise='import')}-12345678")
    assert is_name(f"llm-{slug(text, longest=60) or 'model'}-12345678")
    assert slug(slug(text)) == slug(text)


def test_names_that_stores_have():
    assert slug("Qwen/Qwen3-4B_Instruct") == "qwen-qwen3-4b-instruct"
    assert slug("a" * 70 + "/B", longest=5) == "aaa-b"
    assert name_of("gsm8k..train (1).jsonl", longest=80, otherwise="import") == "gsm8k-train-1-.jsonl"
    assert name_of("__", longest=80, otherwise="import") == "import"


def test_what_is_no_name():
    assert not [name for name in ("", ".a", "a/b", "a..b", "a b", "é", "a" * 101, "-a", "a\n") if is_name(name)]
