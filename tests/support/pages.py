"""Reports of made-up contents, and what a page holds."""

import json
from html.parser import HTMLParser

from polyepo.findings import Finding, Severity
from polyepo.report import Policy, ProblemKey, Report, Response, RunFacts

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror='window.hacked = 1'>",
    "<!--<script>", "]]>", "&lt;b&gt;", "{{ 7 * 7 }}", "${7 * 7}", "javascript:alert(1)",
    "left \u202eright\u202c \u2066isolated", "bell\x07 null\x00 escape\x1b[31mred", "\u2028 and \u2029",
    "\ud7ff\ufffd\U000e0041",
    "x" * 1_000_000,
    b"broken \xff\xfe utf-8".decode("utf-8", "replace"),
]  # fmt: skip


def facts(name="run-a"):
    return RunFacts(name, name[-1], "polynomial", "program", "Poly-EPO", 0, 4, 9, 9, True, "1", "{}")


def response(text, reward=1.0, cluster: int | None = 0, tokens=(1, 2)):
    return Response(text, list(tokens), False, reward, text[:50], cluster, cluster is None, 0.1, "macro", text, "ok")


def report(prompts, figures=(), problems=None, histories=None):
    texts = problems or {prompt.problem_id: "solve " + prompt.problem_id for prompt in prompts}
    problems = {ProblemKey(p.run, p.benchmark, p.problem_id): texts[p.problem_id] for p in prompts}
    policies = [Policy("base", 0, {"pass@1": (0.5, 0.4, 0.6)})]
    return Report(
        "a <title>", [facts()], [Finding(Severity.NOTE, "1 < 2 & 3")], policies,
        "note", "SELECT 1 < 2", list(figures), problems, list(prompts),
        histories or {}, "all", {"history": "SELECT 1", "browser": "SELECT 2"},
    )  # fmt: skip


class Page(HTMLParser):
    """Elements with their attributes, and the text of scripts."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.scripts, self._open = [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = (dict(attrs), []) if tag == "script" else None

    def handle_data(self, data):
        if self._open:
            self._open[1].append(data)

    def handle_endtag(self, tag):
        if tag == "script" and self._open:
            self.scripts.append((self._open[0], "".join(self._open[1])))
            self._open = None


def payload(html):
    return next(json.loads(text) for attrs, text in Page(html).scripts if attrs.get("type") == "application/json")
