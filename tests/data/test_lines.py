"""A list is read line by line: its encoding, its line ends, its comments, compressed or not."""

import gzip

import pytest

from listings import listed, texts


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_line_ends_and_byte_order_mark_make_no_difference(tmp_path, suffix, mark, end):
    lines = ['{"path": "a.wav", "text": "Grüße"}', "", '{"path": "b.wav", "text": "b"}']
    if suffix != "jsonl":
        lines = [
            line.replace(",", {"csv": ",", "tsv": "\t"}[suffix]) for line in ("path,text", "a.wav,Grüße", "b.wav,b")
        ]
    listing = listed(tmp_path, f"list.{suffix}", mark + end.join([*lines, "", "", ""]))
    assert texts(listing) == [("a.wav", "Grüße"), ("b.wav", "b")] and listing.left_out == []


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_manifest_in_utf_16_is_refused_in_one_sentence(tmp_path, suffix):
    with pytest.raises(
        ValueError, match=r"must be a manifest in UTF-8, but it seems to be in UTF-16; save it in UTF-8"
    ):
        listed(tmp_path, f"list.{suffix}", "path\ttext\na.wav\thi\n".encode("utf-16"))


def test_comments_and_rows_of_blanks_are_passed_over(tmp_path):
    content = "# made by hand\npath,text\n# a.wav,x\n,,\na.wav,hi,,\n"
    assert texts(listed(tmp_path, "a.csv", content)) == [("a.wav", "hi")]
    assert texts(listed(tmp_path, "a.jsonl", '// by hand\n#x\n{"path": "a.wav"}')) == [("a.wav", None)]


@pytest.mark.parametrize("name", ["list.jsonl.gz", "list.json.gz", "list.csv.gz", "list.tsv.gz"])
def test_compressed_list_is_read_as_the_plain_one(tmp_path, name):
    plain = {"json": '{"audio_filepath": "a.wav", "text": "x"}\n', "csv": "path,text\na.wav,x\n"}
    plain |= {"jsonl": plain["json"], "tsv": plain["csv"].replace(",", "\t")}
    content = gzip.compress(plain[name.split(".")[1]].encode())
    assert texts(listed(tmp_path, name, content)) == [("a.wav", "x")]
    for broken in (content[:-9], b"x" + content, content[:20] + b"x" + content[21:]):
        with pytest.raises(ValueError, match=r"cannot be decompressed \(.*\); fetch or write it again"):
            listed(tmp_path, name, broken)
