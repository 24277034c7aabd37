"""The page of a build's report, read as a browser reads it."""

from __future__ import annotations

from html.parser import HTMLParser

from diffc.compiler.bundle.report_html import page

REPORT = {
    "drift": [
        {"prompt": "<b>a</b> & b", "steps": (30.0, 20.0, 1e9), "psnr": 17.5},
        {"prompt": "c", "steps": (31.0, 22.0, 21.0), "psnr": 19.0},
    ],
    "layers": [
        {"name": f"unet.{at}", "weight": "int4:channel", "activation": "float", "sqnr": 10.0 + at} for at in range(8)
    ],
    "notes": ["3 layers: <i>note</i>"],
}

TRIED = [
    {"way": [None, [0, 1], [0, 1]], "time": 0.5, "psnr": 30.0, "drop": 0.25, "fixed": False},
    {"way": [None, None, [1, 0]], "time": 0.75, "psnr": 80.0, "drop": None, "fixed": True},
]


class Texts(HTMLParser):
    """Collect tags and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.texts, self.points = list[str](), list[str](), list[str]()
        self.marks = list[dict[str, str | None]]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append(tag)
        self.points += [value or "" for name, value in attrs if name == "points"]
        self.marks += [dict(attrs)] if tag == "circle" else []

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.texts.append(data)


def test_a_page_escapes_what_users_wrote_and_shows_all() -> None:
    reader = Texts()
    reader.feed(page({"quantization": REPORT}))
    assert not {"b", "i"} & set(reader.tags)
    assert reader.texts.count("<b>a</b> & b") == 2 and "3 layers: <i>note</i>" in reader.texts
    assert [text for text in reader.texts if text.startswith("unet.")] == [f"unet.{at}" for at in range(8)]
    assert reader.points == ["0.0,120.0 300.0,160.0 600.0,0.0", "0.0,116.0 300.0,152.0 600.0,156.0"]


def test_schedules_are_marked_by_time_and_picture() -> None:
    reader = Texts()
    reader.feed(page({"cache": {"chosen": TRIED[0], "tried": TRIED}}))
    places = [(mark["class"], mark["cx"], mark["cy"]) for mark in reader.marks]
    assert places == [("chosen", "300.0", "180.0"), ("fixed", "450.0", "0.0")], "15 to 75 dB, from below"
    assert {"50%", "30.0", "0.25", ".11", "75%", "80.0", "..0"} <= set(reader.texts)


def test_what_stays_in_float32_is_listed() -> None:
    row = {"graph": "vae_decode", "layer": "decoder.<b>", "largest": 123456.0}
    reader = Texts()
    reader.feed(page({"precision": {"dtype": "float16", "limit": 32752.0, "wide": [row], "prompts": []}}))
    assert {"vae_decode", "decoder.<b>", "1.23e+05"} <= set(reader.texts)
    reader = Texts()
    reader.feed(page({"precision": {"dtype": "bfloat16", "limit": 32752.0, "wide": [], "prompts": []}}))
    assert "table" not in reader.tags and any("nothing was found" in text for text in reader.texts)


def test_the_reasons_of_techniques_are_shown_with_their_layers() -> None:
    refusals = [
        {"technique": "gptq", "layer": "unet.0", "reason": "its weight is <float>"},
        {"technique": "gptq", "layer": "unet.1", "reason": "its weight is <float>"},
        {"technique": "smoothquant", "layer": "unet.1", "reason": "x"},
    ]
    shown = Texts()
    shown.feed(page({"quantization": {**REPORT, "refusals": refusals}}))
    at = shown.texts.index("its weight is <float>")
    assert shown.texts[at - 1 : at + 3] == ["gptq", "its weight is <float>", "2", "unet.0, unet.1"]
    assert shown.texts[at + 3 : at + 7] == ["smoothquant", "x", "1", "unet.1"]
    without = Texts()
    without.feed(page({"quantization": REPORT}))
    assert not any("left layers alone" in text for text in without.texts)
