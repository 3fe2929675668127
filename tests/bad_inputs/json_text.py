"""
J: JSON. The categories of nst's JSONTestSuite, written out small: y_ (any reader must take it), n_ (none may), i_ (as it likes; here it
says what graft does). Broken texts stand in place of adapter_config.json; good values inside it, at a key of no meaning.
"""

import json

from making import write
from table import add, dice

SYNTAX, ENCODING, DEEP, LARGE, RANGE, TYPE = ("json_syntax", "json_encoding", "json_too_deep", "json_too_large", "out_of_range",
                                              "bad_type")


def document(row, variant, code, text):
    """The whole file."""
    add(row, variant, code, lambda folder, good: write(folder, good.file(), text))


def inside(row, variant, code, text):
    """A value within a good config."""
    add(row, variant, code, lambda folder, good: write(
        folder, good.file(), json.dumps(good.config).encode().replace(b'"auto_mapping": null', b'"auto_mapping": ' + text)))


def visible(text):
    return "".join(chr(b) if 0x20 <= b < 0x7f else f"\\x{b:02x}" for b in text)


def each(row, words, code, texts, way=document):
    for text in texts:
        way(row, f"{words} {visible(text)}", code, text)


# ---- J01: grammar -----------------------------------------------------------------------------------------------------

each("J01", "n, structure:", SYNTAX, [
    b"", b" ", b"hello", b"{}{}", b"[][]", b"{}}", b"1]", b"]", b"}", b"{", b"[", b'{"a":', b'{"a"', b'{"a', b'{"a":"b"', b"{]", b"{,", b"{[",
    b"[,", b"[{", b'["asd]', b"<.>", b"[<null>]", b"2@", b"*", b"[1]x", b"[1]]", b"{}#", b"{}/", b"{}//", b"{}/**/", b"{}// x",
    b'{"a":/**/"b"}', b"\x00", b"{\x00}", b"{}\x00", b"[\x0c]", b"[\\u000A\"\"]", b"[True]", b'{"x": true,', b"[1,", b"[ false, nul",
    b'["a', b"\\u007b\\u007d"])
each("J01", "n, array:", SYNTAX, [
    b"[1 true]", b'["": 1]', b'[""],', b"[,1]", b"[1,,2]", b"[1,,]", b'["x"]]', b'["",]', b'["x"', b"[3[4]]", b"[x", b"[-]", b"[   , \"\"]",
    b'["a",\n4\n,1,', b"[1,]", b'[""', b"[*]", b"[1:2]", b"[1\n", b'["a" "b"]'])
each("J01", "n, object:", SYNTAX, [
    b'["x", truth]', b'{[: "x"}', b'{"x", null}', b'{"x"::"b"}', b'{"a":"a" 123}', b"{key: 'value'}", b'{"a" b}', b'{:"b"}', b'{"a" "b"}',
    b"{1:1}", b"{null:null,null:null}", b'{"id":0,,,,,}', b"{'a':0}", b'{"id":0,}', b'{"a":"b",,"c":"d"}', b'{a: "b"}',
    b'{"foo":"bar","a"}', b'{"a":true} "x"', b'{"r":1,}', b"{'r':1}", b'{"r"=1}', b'{"r":1;}', b'{"r":1 "x":2}'])
document("J01", "n, byte order mark", SYNTAX, b"\xef\xbb\xbf{}")
each("J01", "n, literal:", SYNTAX, [b"[nul]", b"[fals]", b"[tru]", b"[truee]", b"[NULL]", b"[None]", b"[undefined]", b"[Null]"])
each("J01", "y, a whole document that is no object:", TYPE, [
    b"[]", b"[1]", b'"asd"', b"42", b"-0.1", b"null", b"true", b"false", b' [1] ', b"[[]   ]", b'[""]', b'["a"]', b'[null, 1, "1", {}]', b"[1\n]"])
each("J01", "y, inside:", None, [
    b"[]", b"[[]   ]", b'[""]', b'["a"]', b"[false]", b'[null, 1, "1", {}]', b"[null]", b"[1\n]", b" [1]", b"[1,null,null,null,2]", b"[2] ",
    b"{}", b'{"":0}', b'{"asd":"sdf", "dfg":"fgh"}', b'{"min": -1.0e+28, "max": 1.0e+28}', b'{\n"a": "b"\n}', b'{"a":[]}', b"\ttrue\r\n"], inside)

# ---- J02: encoding ------------------------------------------------------------------------------------------------------

each("J02", "n, not UTF-8:", ENCODING, [
    b'{"x":"\xff"}', b'{"x":"\xe5"}', b"[\xe5]", b"{\xb9:1}", b'{"x":"\x80"}', b'{"x":"\xc0\xaf"}', b'{"x":"\xe0\x80\xaf"}', b'{"x":"\xf0\x80\x80\xaf"}',
    b'{"x":"\xed\xa0\x80"}', b'{"x":"\xf4\x90\x80\x80"}', b'{"x":"\xf8\x88\x80\x80\x80"}', b'{"x":"\xc3"}', b'{"x":"\xe2\x82"}', b'{"\xff":1}',
    b"\xef\xbb{}", b"\xff\xfe{\x00}\x00", b"\xfe\xff\x00{\x00}", b"a\xe5", b"123\xe5", b"[1e1\xe5]"])
each("J02", "i, half of a surrogate pair:", ENCODING, [
    b'{"x":"\\ud800"}', b'{"x":"\\udc00"}', b'{"x":"\\ud800abc"}', b'{"x":"\\ud800\\ud800"}', b'{"x":"\\udc00\\ud800"}', b'{"x":"\\uDADA"}',
    b'{"x":"\\uD888\\u1234"}', b'{"x":"\\ud800\\n"}', b'{"x":"\\uD800\\uD800\\n"}', b'{"\\ud800":1}'])
each("J02", "y, string:", None, [
    b'"\\u0060\\u012a\\u12AB"', b'"\\uD801\\udc37"', b'"\\ud83d\\ude39\\ud83d\\udc8d"', b'"\\"\\\\\\/\\b\\f\\n\\r\\t"', b'"\\\\u0000"', b'"\\""',
    b'"a/*b*/c/*d//e"', b'"\\\\a"', b'"\\u0012"', b'"\\uFFFF"', b'"\\uDBFF\\uDFFE"', b'"\\u0123"', b'"\xef\xbf\xbf"', b'"\xf4\x8f\xbf\xbf"',
    b'"\xf0\x9b\xbf\xbf"', b'"\\u002c"', b'"\xcf\x80"', b'"\\u0821"', b'""', b'"\xe2\x80\xa8"', b'"\xe2\x80\xa9"', b'"\\u005C"', b'"\x7f"',
    b'"\\u200B"', b'"\\u2064"', b'"\\uFDD0"', b'"\\uFFFE"', b'"\\u0022"', b'"\xe2\x8d\x82\xe3\x88\xb4\xe2\x8d\x82"', b'"a\x7fa"', b'" "'], inside)

# ---- J03, J04: bounds -----------------------------------------------------------------------------------------------------

document("J03", "100,000 arrays deep", DEEP, b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
document("J03", "100,000 arrays that never end", DEEP, b"[" * 100_000)
document("J03", "100,000 objects deep", DEEP, b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
document("J03", "arrays and objects in turn", DEEP, b'[{"":' * 50_000)
document("J03", "one deeper than allowed", DEEP, b'{"x":' + b"[" * 64 + b"]" * 64 + b"}")
inside("J03", "as deep as allowed", None, b"[" * 63 + b"]" * 63)
document("J04", "a file larger than configs may be", LARGE, b'{"x":"' + b"a" * (1 << 20) + b'"}')
inside("J04", "a string of 1,000,000 bytes", None, b'"' + b"a" * 1_000_000 + b'"')
document("J04", "blanks only, as many as fit", SYNTAX, b" " * (1 << 20))
document("J04", "300,000 arrays", LARGE, b'{"x":[' + b",".join([b"[]"] * 300_000) + b"]}")
inside("J04", "100,000 arrays", None, b"[" + b",".join([b"[]"] * 100_000) + b"]")
inside("J04", "500,000 numbers", None, b"[" + b",".join([b"1"] * 500_000) + b"]")
inside("J04", "50,000 keys", None, json.dumps({f"k{i}": 0 for i in range(50_000)}).encode())

# ---- J05, J06: the same key twice -------------------------------------------------------------------------------------------

DOUBLE = "json_duplicate_key"
each("J05", "key twice:", DOUBLE, [
    b'{"r":1,"r":2}', b'{"r":1,"r":1}', b'{"a":1,"r":1,"b":2,"r":3}', b'{"x":{"a":1,"a":2}}', b'{"x":[{"a":1,"a":2}]}', b'{"":0,"":1}'])
each("J06", "key twice by escape:", DOUBLE, [
    b'{"r":1,"\\u0072":2}', b'{"\\u0072":1,"\\u0072":2}', b'{"a/b":1,"a\\/b":2}', b'{"\\ud83d\\ude39":1,"\xf0\x9f\x98\xb9":2}', b'{"\xc3\xa9":1,"\\u00e9":2}'])
inside("J05", "keys that differ by case only", None, b'{"a":1,"A":2}')
inside("J05", "one key in two objects", None, b'[{"a":1},{"a":1}]')
inside("J05", "keys that only normalisation makes equal", None, b'{"\xc3\xa9":1,"e\xcc\x81":2}')

# ---- J07, J08: numbers -------------------------------------------------------------------------------------------------------

each("J07", "n, number:", SYNTAX, [b"[" + n + b"]" for n in (
    b"++1234", b"+1", b"+Inf", b"-01", b"-1.0.", b"-2.", b".-1", b".2e-3", b"0.1.2", b"0.3e+", b"0.3e", b"0.e1", b"0E+", b"0E", b"0e+", b"0e",
    b"1.0e+", b"1.0e-", b"1.0e", b"1 000.0", b"1eE2", b"2.e+3", b"2.e-3", b"2.e3", b"9.e+", b"1+2", b"0x1", b"0x42", b"0e+-1", b"-123.123foo",
    b"- 1", b"-012", b"-.123", b"-1x", b"1ea", b"1.", b".123", b"1.2a-3", b"012", b"08", b"1_000", b"--1", b"-")])
each("J07", "n, full-width digit:", SYNTAX, ["[１]".encode()])
each("J07", "y, number:", None, [
    b"[123e65]", b"[0e+1]", b"[0e1]", b"[ 4]", b"[-0]", b"[-123]", b"[-1]", b"[1E22]", b"[1E-2]", b"[1E+2]", b"[123e45]", b"[123.456e78]", b"[1e-2]",
    b"[1e+2]", b"[123]", b"[123.456789]", b"[20e1]", b"[-0.0]", b"[9007199254740993]", b"[9223372036854775807]", b"[-9223372036854775808]",
    b"[-0.000000000000000000000000000000000000000000000000000000000000000000000000000001]"], inside)
each("J07", "i, number beyond what can be held:", RANGE, [
    b"[" + n + b"]" for n in (b"1e400", b"-1e+9999", b"1.5e+9999", b"-123123e100000", b"0.4e006699999999999999999999999999999999999999999", b"18446744073709551616",
                              b"9223372036854775808", b"-9223372036854775809", b"100000000000000000000", b"-237462374673276894279832749832423479823246327846")])
document("J07", "n, a number beyond what can be held as key", RANGE, b"{9999E9999:1}")
document("J07", "i, number of 5,000 digits", RANGE, b"[" + b"9" * 5000 + b"]")
each("J07", "i, number too small to be held:", None, [b"[123.456e-789]", b"[1e-10000]", b"[-1e-400]"], inside)
inside("J07", "i, fraction of 5,000 digits", None, b"[0." + b"3" * 5000 + b"]")
each("J08", "n, no number:", SYNTAX, [b'{"lora_alpha":%s}' % n for n in (b"NaN", b"-NaN", b"Infinity", b"-Infinity", b"Inf", b"-Inf", b"nan", b"inf")])

# ---- J10, J11 ------------------------------------------------------------------------------------------------------------------


def alike():
    """20,000 keys of one length that differ in few bits: an attack would look so against a hash without a seed."""
    d = dice("alike")
    return json.dumps({"".join(d.choice("Aa") for _ in range(24)): 0 for _ in range(20_000)}).encode()


inside("J10", "20,000 keys that are nearly alike", None, alike())
each("J11", "n, string:", SYNTAX, [
    b'{"x":"\n"}', b'{"x":"\t"}', b'{"x":"\x1b"}', b'{"x":"\x01"}', b'{"x":"\x1f"}', b'{"a\nb":1}', b'["\\x00"]', b'["\\\\\\"]', b'["\\a"]', b'["\\\xf0\x9f\x8c\x80"]',
    b'["\\"]', b'["\\u00A"]', b'["\\u12"]', b'["\\uqqqq"]', b'["\\u"]', b"[\"\\'\"]", b"['single quote']", b'"', b'["', b"abc", b'["\\u 123"]', b'["\\u+123"]',
    b'["\\ "]', b'["\\U00000041"]'])
each("J11", "NUL by escape:", ENCODING, [b'{"x":"\\u0000"}', b'{"x\\u0000":1}', b'{"peft_type":"LORA\\u0000"}'])
document("J11", "NUL byte", SYNTAX, b'{"x":"\x00"}')
