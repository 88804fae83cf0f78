from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.base.errors import UsageError
from knarr.cli.template import Template

ROW: dict[str, Any] = {
    "Name": "web",
    "ID": "0123",
    "State": {"Status": "running", "Pid": 7, "Up": True},
    "Ports": ["80", "443"],
    "Labels": {"b": "2", "a.b/c": "1"},
    "Nothing": None,
    "Empty": "",
}


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("plain", "plain"),
        ("{{.Name}}", "web"),
        ("{{ .Name }} {{.ID}}", "web 0123"),
        ("{{.State.Status}}", "running"),
        ("{{.State.Pid}}:{{.State.Up}}", "7:true"),
        ("{{json .State}}", '{"Status":"running","Pid":7,"Up":true}'),
        ("{{json .Name}}", '"web"'),
        ("{{.Ports}}", "[80 443]"),
        ("{{.Labels}}", "map[a.b/c:1 b:2]"),
        ('{{index .Labels "a.b/c"}}', "1"),
        ('{{index .Labels "no"}}', ""),
        ("{{index .Ports 1}}", "443"),
        ("{{len .Ports}}", "2"),
        ('{{join .Ports ","}}', "80,443"),
        ("{{upper .Name}}", "WEB"),
        ("{{.Name | upper}}", "WEB"),
        ("{{.State.Status | json}}", '"running"'),
        ('{{"text"}}', "text"),
        ("{{range .Ports}}<{{.}}>{{end}}", "<80><443>"),
        ("{{range .Ports}}{{$.Name}}/{{.}} {{end}}", "web/80 web/443 "),
        ("{{if .Empty}}yes{{else}}no{{end}}", "no"),
        ("{{if .Name}}{{if .Nothing}}a{{else}}b{{end}}{{end}}", "b"),
        ("{{.Nothing}}", "<no value>"),
        (r"{{.Name}}\t{{.ID}}", "web\t0123"),
        ("a {{- .Name -}} b", "awebb"),
        ("{{/* a comment */}}x", "x"),
        ('{{println .Name "is up"}}', "web is up\n"),
        ('{{split .Name "e"}}', "[w b]"),
    ],
)  # fmt: skip
def test_templates(source: str, wanted: str) -> None:
    assert Template(source).render(ROW) == wanted


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{.Nmae}}", ".Nmae does not exist; there is .Name, .ID"),
        ("{{.State.Nope}}", ".Nope does not exist in .State; there is .Status"),
        ("{{.Name.More}}", "has no fields"),
        ("{{.Name", "without its }}"),
        ("{{}}", "empty"),
        ("{{range .Ports}}", "without its {{end}}"),
        ("{{end}}", "without a beginning"),
        ("{{fly .Name}}", "'fly' is not known; there is json"),
        ("{{Name}}", "a field is written {{.Name}}"),
        ("{{json}}", "does not take 0 arguments"),
        ("{{len .State.Pid}}", "does not fit"),
        ('{{"open}}', "without its }}"),
        ("{{(.Name)}}", "parentheses"),
        ("{{.Name | }}", "nothing to show"),
    ],
)
def test_mistakes_are_told(source: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Template(source).render(ROW)
    assert words in str(caught.value)


def test_headings_of_a_table() -> None:
    assert Template("{{.Name}}\t{{.CreatedSince}}\t{{.ID}}").headings() == "NAME\tCREATED SINCE\tID"


@given(st.text(alphabet="{}.|\"'`$- azN0\\", max_size=30))
def test_only_our_error(source: str) -> None:
    try:
        Template(source).render(ROW)
    except UsageError:
        pass
