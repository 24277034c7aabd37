"""Define program texts and the highest level of verification that accepts each: one program, and changes to it."""

from __future__ import annotations

from collections.abc import Iterator

REFUSED, TRACED, NORMAL_FORM, EXECUTABLE = "refused", "traced", "normal form", "executable"

PROGRAM = """program p(prompt: text[2], g: scalar = 5.0, h: scalar) {
    guard g > 1.0
    graph f(ids: int64[2, 8], t: float32[], flags: bool[2], rows: int64[2, 2]) -> (a: float32[4, 3, 2, 2])
    table w: float32[3, 1, 1]
    ids: int64[2, 8], mask: int32[2, 8] = tokenize(prompt, tokenizer="words", length=8, pad=1, template="a \\"{}\\"")
    n: float32[2, 3, 2, 2] = noise()
    y: float32[4, 3, 2, 2] = f(ids=ids, t=-1, flags=[true, false], rows=[[1, 2], [3, 4]])
    u: float32[2, 3, 2, 2], v: float32[2, 3, 2, 2] = split(y, axis=0)
    x: float32[2, 3, 2, 2] = linear(n, u, w; 1.5, 0.2 + -0.2*g - g*h, g, 1e-05)
    step(x; 2.0)
    c: float32[2, 3, 4, 2] = concat(x, v, axis=2)
    return c, mask
}
"""

SIMPLE = """program p({input}) {{
    y: float32[1, 2] = linear(; {constant})
    return y
}}
"""

IDS = "ids: int64[2, 8], mask"
READS_S = 'k: int64[2, 8] = tokenize(s, tokenizer="words", length=8, pad=1)\n    ' + IDS
TEXTS = (
    ("lower case", EXECUTABLE, "lower(prompt)"),
    ("upper case", EXECUTABLE, "upper(prompt)"),
    ("lower case with a keyword", REFUSED, 'lower(prompt, by="x")'),
    ("lower case of two texts", REFUSED, "lower(prompt, prompt)"),
    ("lower case of a tensor", REFUSED, "lower(w)"),
    ("lower case of a string", REFUSED, 'lower("x")'),
    ("lower case with a coefficient", REFUSED, "lower(prompt; 1.0)"),
    ("strip", EXECUTABLE, 'strip(prompt, side="left", characters=".,")'),
    ("strip on no side", REFUSED, 'strip(prompt, side="top")'),
    ("strip of a number", REFUSED, "strip(prompt, characters=1)"),
    ("collapse", EXECUTABLE, 'collapse(prompt, by="", keep="\\u001c")'),
    ("collapse by a number", REFUSED, "collapse(prompt, by=1)"),
    ("unescape", EXECUTABLE, "unescape(prompt)"),
    ("replace", EXECUTABLE, 'replace(prompt, old="a", new="")'),
    ("replace without new", REFUSED, 'replace(prompt, old="a")'),
    ("replace of nothing", REFUSED, 'replace(prompt, old="", new="a")'),
    ("fill", EXECUTABLE, 'fill(prompt, template="{}.")'),
    ("fill without braces", REFUSED, 'fill(prompt, template="a")'),
    ("fill with braces twice", REFUSED, 'fill(prompt, template="{}{}")'),
    ("fill without a template", REFUSED, "fill(prompt)"),
    ("expand", EXECUTABLE, 'expand(prompt, tokenizer="words", words=[["a", "a b"], ["b", ""]])'),
    ("expand with an unknown tokenizer", REFUSED, 'expand(prompt, tokenizer="letters", words=[["a", "a b"]])'),
    ("expand of no words", REFUSED, 'expand(prompt, tokenizer="words", words=[])'),
    ("expand of words alone", REFUSED, 'expand(prompt, tokenizer="words", words=["a", "b"])'),
    ("expand of three words", REFUSED, 'expand(prompt, tokenizer="words", words=[["a", "b", "c"]])'),
    ("expand of an empty word", REFUSED, 'expand(prompt, tokenizer="words", words=[["", "b"]])'),
    ("expand of a number", REFUSED, 'expand(prompt, tokenizer="words", words=[["a", 1]])'),
)
"""Operations on texts: a name, the level, and the call."""

# What differs from the program above: a name, the level, the old text and the new one.
CHANGES: tuple[tuple[str, str, str, str], ...] = (
    # The text
    ("one line", EXECUTABLE, "{\n    guard", "{ guard"),
    ("tabs and returns", EXECUTABLE, "    ", "\t\r\f\v"),
    ("a space that is not ASCII", REFUSED, "    guard", "\u00a0   guard"),
    ("a letter that is not ASCII", REFUSED, "program p", "program é"),
    ("a comment", REFUSED, "    guard", "    # a guard\n    guard"),
    ("a trailing comma", REFUSED, "h: scalar)", "h: scalar,)"),
    ("another first word", REFUSED, "program p", "programme p"),
    ("no end", REFUSED, "return c, mask\n}", "return c, mask\n"),
    ("text after the end", REFUSED, "return c, mask\n}", "return c, mask\n} }"),
    ("no return", REFUSED, "    return c, mask\n", ""),
    ("a graph after a table", REFUSED, "    ids: int64", "    graph k(a: bool[]) -> (b: bool[])\n    ids: int64"),
    ("a guard after a graph", REFUSED, "    table w", "    guard h < 1.0\n    table w"),
    ("a table after an operation", REFUSED, "    n: float32", "    table k: bool[]\n    n: float32"),
    ("an operation after return", REFUSED, "return c, mask", "return c, mask\n    step(x; 1.0)"),
    ("a value without type", REFUSED, "n: float32[2, 3, 2, 2] = noise", "n = noise"),
    ("a value named as a built-in", EXECUTABLE, "step(x; 2.0)", "step: float32[2, 2] = noise()"),
    ("a value named as a graph", EXECUTABLE, "step(x; 2.0)", "f: float32[2, 2] = noise()"),
    ("a value named inf", REFUSED, "step(x; 2.0)", "inf: float32[2, 2] = noise()"),
    ("a value named information", EXECUTABLE, "step(x; 2.0)", "information: float32[2, 2] = noise()"),
    ("a value named inf_", EXECUTABLE, "step(x; 2.0)", "inf_: float32[2, 2] = noise()"),
    ("a name with a point", EXECUTABLE, "step(x; 2.0)", "a.b.: float32[2, 2] = noise()"),
    ("a value named true", REFUSED, "step(x; 2.0)", "true: float32[2, 2] = noise()"),
    ("a value named table", REFUSED, "step(x; 2.0)", "table: float32[2, 2] = noise()"),
    ("a program named graph", REFUSED, "program p", "program graph"),
    # Numbers and strings
    ("minus as a term", EXECUTABLE, "0.2 + -0.2*g - g*h", "0.2 -0.2*g -g*h"),
    ("minus in front", EXECUTABLE, "0.2 + -0.2*g - g*h", "-g + 0.2"),
    ("minus twice", EXECUTABLE, "0.2 + -0.2*g - g*h", "0.2 - -0.2*g"),
    ("minus apart from a number", EXECUTABLE, "0.2 + -0.2*g - g*h", "- 0.2 - 0.2 * g"),
    ("plus in front", REFUSED, "0.2 + -0.2*g - g*h", "+0.2"),
    ("numbers without an operator", REFUSED, "0.2 + -0.2*g - g*h", "0.2 0.2"),
    ("a number after a name", REFUSED, "0.2 + -0.2*g - g*h", "g*0.2"),
    ("brackets in a polynomial", REFUSED, "0.2 + -0.2*g - g*h", "(0.2 + g)"),
    ("a literal apart from its minus", REFUSED, "t=-1", "t=- 1"),
    ("a number that starts with a point", REFUSED, "2.0)", ".5)"),
    ("a number that ends with a point", REFUSED, "2.0)", "2.)"),
    ("a large exponent mark", REFUSED, "1e-05", "1E-05"),
    ("an exponent with plus", EXECUTABLE, "1e-05", "1.25e+3"),
    ("leading zeros", EXECUTABLE, "2.0)", "0002.50)"),
    ("a hexadecimal number", REFUSED, "2.0)", "0x2)"),
    ("400 digits", EXECUTABLE, "t=-1", "t=0." + "1" * 398),
    ("401 digits", REFUSED, "t=-1", "t=0." + "1" * 399),
    ("an integer that binary64 cannot hold", REFUSED, "g > 1.0", "g > " + "9" * 400),
    ("an infinite coefficient", REFUSED, "1.5, 0.2", "inf, 0.2"),
    ("a coefficient that overflows", REFUSED, "1.5, 0.2", "1e999, 0.2"),
    ("a coefficient that is NaN", REFUSED, "1.5, 0.2", "nan, 0.2"),
    ("a default that is NaN", REFUSED, "g: scalar = 5.0", "g: scalar = nan"),
    ("a default that is infinite", REFUSED, "g: scalar = 5.0", "g: scalar = -inf"),
    ("a default that is an integer", EXECUTABLE, "g: scalar = 5.0", "g: scalar = -5"),
    ("a literal that is NaN", EXECUTABLE, "t=-1", "t=nan"),
    ("a literal that is infinite", EXECUTABLE, "t=-1", "t=-inf"),
    ("an escape that JSON lacks", REFUSED, '"words"', '"\\q"'),
    ("a string with a tab", REFUSED, '\\"{}\\"', "\t{}"),
    ("a string over two lines", REFUSED, '\\"{}\\"', "\n{}"),
    ("a string with escapes", EXECUTABLE, '\\"{}\\"', "\\u00e9\\n\\ud83d\\ude00{}\\/"),
    ("a string in single quotes", REFUSED, '"words"', "'words'"),
    # Shapes and types
    ("a negative size", REFUSED, "table w: float32[3, 1, 1]", "table w: float32[3, -1, 1]"),
    ("a size with a point", REFUSED, "table w: float32[3, 1, 1]", "table w: float32[3, 1.0, 1]"),
    ("a size that is a name", REFUSED, "table w: float32[3, 1, 1]", "table w: float32[n]"),
    ("eight sizes", EXECUTABLE, "return", "k: float32[2, 1, 1, 1, 1, 1, 1, 1] = noise()\n    return"),
    ("nine sizes", REFUSED, "return", "k: float32[2, 1, 1, 1, 1, 1, 1, 1, 1] = noise()\n    return"),
    ("2^32 elements", EXECUTABLE, "return", "k: float32[65536, 65536] = noise()\n    return"),
    ("more than 2^32 elements", REFUSED, "return", "k: float32[65536, 65537] = noise()\n    return"),
    ("a size above 2^32 and one of 0", REFUSED, "table w: float32[3, 1, 1]", "table w: float32[0, 4294967297]"),
    ("an unknown element type", REFUSED, "table w: float32", "table w: float8"),
    ("a table of bfloat16 that nothing reads", TRACED, "table w", "table b: bfloat16[2]\n    table w"),
    ("lists nested eight deep", REFUSED, "[[1, 2], [3, 4]]", "[" * 8 + "]" * 8),
    ("lists nested nine deep", REFUSED, "[[1, 2], [3, 4]]", "[" * 9 + "]" * 9),
    # Inputs and declarations
    ("a text of two dimensions", REFUSED, "prompt: text[2]", "prompt: text[2, 2]"),
    ("an input of integers", REFUSED, "prompt: text[2]", "e: int64[2], prompt: text[2]"),
    ("an input that is one number", REFUSED, "prompt: text[2]", "e: float32[], prompt: text[2]"),
    ("a tensor input", EXECUTABLE, "prompt: text[2]", "e: float32[2, 9], prompt: text[2]"),
    ("a tensor input of another batch", NORMAL_FORM, "prompt: text[2]", "e: float32[4, 9], prompt: text[2]"),
    ("a text of another batch", NORMAL_FORM, "prompt: text[2]", "e: text[1], prompt: text[2]"),
    ("a text with a default", REFUSED, "prompt: text[2]", "prompt: text[2] = 1"),
    ("an image", EXECUTABLE, "prompt: text[2]", "i: image[2, 3, 8, 8], prompt: text[2]"),
    ("an image by the older word", EXECUTABLE, "prompt: text[2]", "i: picture[2, 1, 8, 8], prompt: text[2]"),
    ("an image of four channels", REFUSED, "prompt: text[2]", "i: image[2, 4, 8, 8], prompt: text[2]"),
    ("an image without rows", REFUSED, "prompt: text[2]", "i: image[2, 3, 0, 8], prompt: text[2]"),
    ("an image of three dimensions", REFUSED, "prompt: text[2]", "i: image[2, 8, 8], prompt: text[2]"),
    ("an image with a default", REFUSED, "prompt: text[2]", "i: image[2, 3, 8, 8] = 1, prompt: text[2]"),
    ("two inputs of one name", REFUSED, "h: scalar)", "h: scalar, g: scalar)"),
    ("an input and a table of one name", REFUSED, "table w", "table g: bool[]\n    table w"),
    ("a guard on a text", REFUSED, "guard g", "guard prompt"),
    ("a guard on nothing", REFUSED, "guard g", "guard k"),
    ("two guards on a scalar", EXECUTABLE, "guard g > 1.0", "guard g > 1.0\n    guard g <= 9"),
    ("a guard with another operator", REFUSED, "guard g >", "guard g ="),
    ("a graph named as a built-in", REFUSED, "graph f(", "graph noise(a: bool[]) -> (b: bool[])\n    graph f("),
    ("two graphs of one name", REFUSED, "table w", "graph f(a: bool[]) -> (b: bool[])\n    table w"),
    ("two input ports of one name", REFUSED, "t: float32[]", "ids: float32[]"),
    ("an input and an output port of one name", REFUSED, "-> (a:", "-> (t:"),
    ("a port that is a scalar", REFUSED, "t: float32[]", "t: scalar"),
    ("a table of texts", REFUSED, "table w: float32[3, 1, 1]", "table w: text[3]"),
    ("a graph that nothing calls", EXECUTABLE, "table w", "graph k(a: bool[]) -> (b: bool[])\n    table w"),
    # Operations
    ("an unknown operator", REFUSED, "= noise()", "= nose()"),
    ("an operator of ATen", TRACED, "step(x; 2.0)", "k: float32[2, 3, 2, 2] = aten.abs.default(x)"),
    ("a value read before its definition", REFUSED, "linear(n,", "linear(c,"),
    ("an unknown value", REFUSED, "linear(n,", "linear(q,"),
    ("a value defined twice", REFUSED, "x: float32[2, 3, 2, 2] =", "u: float32[2, 3, 2, 2] ="),
    ("a number for a value", REFUSED, "linear(n,", "linear(1,"),
    ("noise that follows a value", REFUSED, "= noise()", "= noise(w)"),
    ("noise that follows a text", EXECUTABLE, "= noise()", "= noise(prompt)"),
    ("noise that follows one text twice", EXECUTABLE, "= noise()", "= noise(prompt, prompt, each=true)"),
    ("noise that follows a scalar", REFUSED, "= noise()", "= noise(g)"),
    ("noise that follows a number", REFUSED, "= noise()", "= noise(1)"),
    ("noise of each image that follows nothing", REFUSED, "= noise()", "= noise(each=true)"),
    ("noise of not each image", REFUSED, "= noise()", "= noise(prompt, each=false)"),
    ("noise of each image by a number", REFUSED, "= noise()", "= noise(prompt, each=1)"),
    ("noise with a keyword", REFUSED, "= noise()", "= noise(seed=1)"),
    ("noise with a coefficient", REFUSED, "= noise()", "= noise(; 1.0)"),
    ("uniform noise", EXECUTABLE, "= noise()", '= noise(kind="uniform")'),
    ("uniform noise in float64", EXECUTABLE, "step(x; 2.0)", 'k: float64[2, 3] = noise(kind="uniform")'),
    ("exponential noise of each image", EXECUTABLE, "= noise()", '= noise(prompt, each=true, kind="exponential")'),
    ("exponential noise in float64", REFUSED, "step(x; 2.0)", 'k: float64[2, 3] = noise(kind="exponential")'),
    ("integers as noise", EXECUTABLE, "step(x; 2.0)", 'k: int64[2, 3] = noise(kind="integers", low=-2, high=9)'),
    ("integers as noise in float32", REFUSED, "= noise()", '= noise(kind="integers", low=0, high=9)'),
    ("integers without a limit", REFUSED, "step(x; 2.0)", 'k: int64[2, 3] = noise(kind="integers", high=9)'),
    ("no integers", REFUSED, "step(x; 2.0)", 'k: int64[2, 3] = noise(kind="integers", low=9, high=9)'),
    ("normal noise with limits", REFUSED, "= noise()", "= noise(low=0, high=9)"),
    ("normal noise by its kind", REFUSED, "= noise()", '= noise(kind="normal")'),
    ("noise of an unknown kind", REFUSED, "= noise()", '= noise(kind="cauchy")'),
    ("noise of a kind that is a number", REFUSED, "= noise()", "= noise(kind=1)"),
    ("noise in float16", REFUSED, "step(x; 2.0)", "k: float16[2, 3] = noise()"),
    ("noise of another batch", NORMAL_FORM, "step(x; 2.0)", "k: float32[3, 3] = noise()"),
    ("noise of two batches", EXECUTABLE, "step(x; 2.0)", "k: float32[4, 3] = noise()"),
    ("noise that is one number", NORMAL_FORM, "step(x; 2.0)", "k: float32[] = noise()"),
    ("two results of noise", REFUSED, "step(x; 2.0)", "k: float32[2], l: float32[2] = noise()"),
    ("a text operand", REFUSED, "linear(n,", "linear(prompt,"),
    ("a scalar operand", REFUSED, "linear(n,", "linear(g,"),
    ("a linear that does not broadcast", REFUSED, "linear(n,", "linear(y,"),
    ("a linear without operands", EXECUTABLE, "linear(n, u, w; 1.5, 0.2 + -0.2*g - g*h, g, 1e-05)", "linear(; g)"),
    ("a linear without anything", REFUSED, "linear(n, u, w; 1.5, 0.2 + -0.2*g - g*h, g, 1e-05)", "linear()"),
    ("a linear without constant", EXECUTABLE, ", g, 1e-05)", ", g)"),
    ("too few coefficients", REFUSED, ", g, 1e-05)", ")"),
    ("too many coefficients", REFUSED, ", 1e-05)", ", 1.0, 1.0)"),
    ("a linear with a keyword", REFUSED, "linear(n, u, w;", "linear(n, u, w, axis=0;"),
    ("a coefficient that reads a tensor", REFUSED, "- g*h", "- g*w"),
    ("a coefficient that reads nothing known", REFUSED, "- g*h", "- g*k"),
    ("a linear of integers", REFUSED, "step(x; 2.0)", "k: int64[2, 8] = linear(ids; 2.0)"),
    ("a linear of integers into floats", EXECUTABLE, "step(x; 2.0)", "k: float16[2, 8] = linear(ids; 2.0)"),
    ("a step without operands", REFUSED, "step(x; 2.0)", "step(; 2.0)"),
    ("a step without coefficients", REFUSED, "step(x; 2.0)", "step(x)"),
    ("a step with a result", REFUSED, "step(x; 2.0)", "k: float32[2, 3, 2, 2] = step(x; 2.0)"),
    ("a step with a keyword", REFUSED, "step(x; 2.0)", "step(x, axis=0; 2.0)"),
    ("a step of a literal", REFUSED, "step(x; 2.0)", "step(1; 2.0)"),
    ("a step whose operands broadcast", EXECUTABLE, "step(x; 2.0)", "step(w, x; 2.0, 1.0, 1.0)"),
    ("a step whose operands do not broadcast", REFUSED, "step(x; 2.0)", "step(x, y; 2.0, 1.0)"),
    ("an axis that is too large", REFUSED, "axis=0)", "axis=4)"),
    ("a negative axis", REFUSED, "axis=2)", "axis=-2)"),
    ("an axis that is true", REFUSED, "axis=0)", "axis=true)"),
    ("an axis with a point", REFUSED, "axis=0)", "axis=0.0)"),
    ("no axis", REFUSED, "split(y, axis=0)", "split(y)"),
    ("a split of two values", REFUSED, "split(y, axis=0)", "split(y, n, axis=0)"),
    ("a split into parts of another shape", REFUSED, "split(y, axis=0)", "split(y, axis=1)"),
    ("a split into one part", EXECUTABLE, "step(x; 2.0)", "k: float32[2, 3, 2, 2] = split(x, axis=3)"),
    ("a split into no parts", REFUSED, "step(x; 2.0)", "split(x, axis=0)"),
    ("a split of another type", REFUSED, "u: float32[2, 3, 2, 2],", "u: float16[2, 3, 2, 2],"),
    ("a concat of one", EXECUTABLE, "step(x; 2.0)", "k: float32[2, 3, 2, 2] = concat(x, axis=2)"),
    ("a concat of nothing", REFUSED, "concat(x, v, axis=2)", "concat(axis=2)"),
    ("a concat of other ranks", REFUSED, "concat(x, v, axis=2)", "concat(x, w, axis=2)"),
    ("a concat of other types", REFUSED, "step(x; 2.0)", "k: int64[2, 16] = concat(ids, mask, axis=1)"),
    ("a concat of another result", REFUSED, "concat(x, v, axis=2)", "concat(x, v, axis=0)"),
    ("a call with an argument", REFUSED, "f(ids=ids,", "f(ids,"),
    ("a call without a port", REFUSED, "f(ids=ids,", "f("),
    ("a call with a port too many", REFUSED, "f(ids=ids,", "f(ids=ids, k=1,"),
    ("a keyword twice", REFUSED, "f(ids=ids,", "f(ids=ids, ids=ids,"),
    ("a port of another type", REFUSED, "f(ids=ids,", "f(ids=mask,"),
    ("a text for a port", REFUSED, "f(ids=ids,", "f(ids=prompt,"),
    (
        "a call in another order",
        EXECUTABLE,
        "f(ids=ids, t=-1, flags=[true, false]",
        "f(t=-1, flags=[true, false], ids=ids",
    ),
    ("one literal for a whole port", EXECUTABLE, "f(ids=ids,", "f(ids=7,"),
    ("none for a port", REFUSED, "t=-1", "t=none"),
    ("a string for a port", REFUSED, "t=-1", 't="1"'),
    ("truth for a number", REFUSED, "t=-1", "t=true"),
    ("a number for truth", REFUSED, "flags=[true, false]", "flags=[1, 0]"),
    ("a fraction for an integer", REFUSED, "[[1, 2], [3, 4]]", "[[1, 2], [3, 4.0]]"),
    ("an integer that int64 cannot hold", REFUSED, "[[1, 2], [3, 4]]", "9223372036854775808"),
    ("the smallest integer of int64", EXECUTABLE, "[[1, 2], [3, 4]]", "-9223372036854775808"),
    ("a list of another length", REFUSED, "flags=[true, false]", "flags=[true]"),
    ("lists of different lengths", REFUSED, "[[1, 2], [3, 4]]", "[[1, 2], [3]]"),
    ("a list for one number", REFUSED, "t=-1", "t=[-1]"),
    ("a name in a list", REFUSED, "[[1, 2], [3, 4]]", "[[1, 2], [3, g]]"),
    ("results of another type", REFUSED, "y: float32[4, 3, 2, 2] = f", "y: float32[4, 3, 4, 1] = f"),
    ("a result left out", REFUSED, "y: float32[4, 3, 2, 2] = f", "f"),
    ("tokenize without a text", REFUSED, "tokenize(prompt,", "tokenize(w,"),
    ("tokenize of two texts", REFUSED, "tokenize(prompt,", "tokenize(prompt, prompt,"),
    ("a tokenizer that is a name", REFUSED, 'tokenizer="words"', "tokenizer=words"),
    ("no tokenizer", REFUSED, 'tokenizer="words", ', ""),
    ("no length", REFUSED, "length=8, ", ""),
    ("a length of 0", REFUSED, "length=8", "length=0"),
    ("another length than the result's", REFUSED, "length=8", "length=9"),
    ("a negative pad", REFUSED, "pad=1", "pad=-1"),
    ("a pad that is true", REFUSED, "pad=1", "pad=true"),
    ("a pad that int32 cannot hold", REFUSED, "pad=1", "pad=2147483648"),
    ("another keyword of tokenize", REFUSED, "pad=1", "pad=1, padding=true"),
    ("a template without braces", REFUSED, '"a \\"{}\\""', '"a"'),
    ("a template with braces twice", REFUSED, '"a \\"{}\\""', '"{}{}"'),
    ("a template and sides", EXECUTABLE, "pad=1", 'pad=1, padding_side="left", truncation_side="right"'),
    ("a side that does not exist", REFUSED, "pad=1", 'pad=1, padding_side="top"'),
    ("a side that is no string", REFUSED, "pad=1", "pad=1, truncation_side=1"),
    # Operations on texts
    *((f"{name} of a text", level, IDS, f"s: text[2] = {call}\n    {IDS}") for name, level, call in TEXTS),
    ("a text that is tokenized after an operation", EXECUTABLE, IDS, "s: text[2] = lower(prompt)\n    " + READS_S),
    ("an operation of another batch of texts", REFUSED, IDS, "s: text[1] = lower(prompt)\n    " + IDS),
    ("an operation that returns two texts", REFUSED, IDS, "s: text[2], r: text[2] = lower(prompt)\n    " + IDS),
    ("an operation that returns no text", REFUSED, IDS, "s: float32[2] = lower(prompt)\n    " + IDS),
    ("a text defined twice", REFUSED, IDS, "prompt: text[2] = lower(prompt)\n    " + IDS),
    (
        "a text of an operation returned",
        REFUSED,
        "return c, mask",
        "s: text[2] = lower(prompt)\n    return s",
    ),
    ("a text for a port after an operation", REFUSED, "ids=ids", "ids=prompt"),
    ("a result of noise that is a text", REFUSED, "n: float32[2, 3, 2, 2]", "n: text[2]"),
    ("a graph named lower", REFUSED, "graph f(", "graph lower("),
    ("a value named lower", EXECUTABLE, "step(x; 2.0)", "lower: float32[2, 2] = noise()"),
    ("ids without a mask", EXECUTABLE, "return c, mask", "return c"),
    ("a mask of truth values", REFUSED, "mask: int32[2, 8]", "mask: bool[2, 8]"),
    # What is returned
    ("nothing returned", REFUSED, "return c, mask", "return"),
    ("an unknown value returned", REFUSED, "return c, mask", "return c, k"),
    ("a text returned", REFUSED, "return c, mask", "return c, prompt"),
    ("a scalar returned", REFUSED, "return c, mask", "return c, g"),
    ("a value returned twice", EXECUTABLE, "return c, mask", "return c, c"),
    ("a table returned", EXECUTABLE, "return c, mask", "return c, w"),
    ("integers first", NORMAL_FORM, "return c, mask", "return mask, c"),
    ("another batch returned", NORMAL_FORM, "return c, mask", "return y"),
)


def program_cases() -> Iterator[tuple[str, str, str]]:
    """Yield the name of each case, the highest level that accepts it, and its text."""
    yield "the program", EXECUTABLE, PROGRAM
    yield "nothing", REFUSED, ""
    yield "no inputs", EXECUTABLE, SIMPLE.format(input="", constant="1.0")
    yield "no texts", EXECUTABLE, SIMPLE.format(input="g: scalar", constant="-g*g*g + 2.0*g*g - 1.0")
    yield "a batch of no rows", NORMAL_FORM, SIMPLE.format(input="", constant="1.0").replace("[1, 2]", "[0, 2]")
    several = SIMPLE.format(input="a: float32[1, 9]", constant="1.0").replace("[1, 2]", "[2, 2]")
    yield "several rows of one image returned", EXECUTABLE, several
    yield "one number returned", NORMAL_FORM, SIMPLE.format(input="", constant="1.0").replace("[1, 2]", "[]")
    for name, level, old, new in CHANGES:
        assert PROGRAM.count(old), f"{name}: {old}"
        # What is to be changed once may occur later too; spaces at the start of lines are all changed.
        yield name, level, PROGRAM.replace(old, new) if old == "    " else PROGRAM.replace(old, new, 1)
