"""What an endpoint takes and gives: types, options from every place they may stand in, and what is refused."""

import base64
import json
from urllib.parse import quote

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from dogbreed.core.errors import DogbreedError
from dogbreed.inference import schema
from dogbreed.inference.schema import (
    ClassScore,
    Options,
    Request,
    RequestError,
    Response,
    negotiate,
    parse_media_type,
    read,
    write,
)

PICTURE = b"\xff\xd8 not decoded here \x00\xff"
TEXT = base64.b64encode(PICTURE).decode()
ANSWER = Response([ClassScore("Beagle", 2, 0.75), ClassScore("Saint, Bernard", 0, 0.25)], [1.5, -2.0, 3.25])


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "image/jpeg",
            "image/pjpeg",
            "image/x-png",
            "image/x-portable-pixmap",
            "image/apng",
            "image/avif",
            "image/any",
        ),
        *("application/octet-stream", "binary/octet-stream", "application/x-image"),
        *("IMAGE/JPEG", " image/png ; charset=x", None, ""),
    ],
)
def test_bytes_of_an_image(kind):
    assert read(PICTURE, kind) == Request([PICTURE])


def test_json_with_one_or_several():
    assert read(json.dumps({"image": TEXT}).encode(), "application/json") == Request([PICTURE])
    several = read(json.dumps({"images": [TEXT, ""], "top_k": 2, "logits": True}), "application/json; charset=utf-8")
    assert several == Request([PICTURE, b""], several=True, options=Options(2, True))


def test_base64_in_lines_as_many_tools_write_it():
    picture = bytes(range(256))
    body = json.dumps({"image": base64.encodebytes(picture).decode()})
    assert read(body, "application/json") == Request([picture])


@pytest.mark.parametrize(
    "image",
    [
        f"data:image/jpeg;base64,{TEXT}",
        f"DATA:image/png;name=dog.png;Base64,{TEXT}",
        f"data:;base64, {TEXT}",
        f"data:image/png;base64,{quote(TEXT, safe='')}",
        base64.urlsafe_b64encode(PICTURE).decode(),
    ],
)
def test_data_urls_and_the_alphabet_of_urls(image):
    assert read(json.dumps({"image": image}), "application/json") == Request([PICTURE])
    assert read(json.dumps({"images": [image]}), "application/json") == Request([PICTURE], several=True)


def form(*parts: tuple[str, bytes], boundary: str = "xyz") -> bytes:
    sections = [
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + body for head, body in parts
    ]
    return b"\r\n".join([*sections, f"--{boundary}--\r\n".encode()])


def test_forms():
    kind = "multipart/form-data; boundary=xyz"
    picture = PICTURE + b"\r\n\r\n--xy\r\n"
    image = ('name="image"; filename="dog.jpg"\r\nContent-Type: image/jpeg', picture)
    assert read(form(image), kind) == Request([picture])
    assert read(b"preamble\r\n" + form(image) + b"epilogue", kind) == Request([picture])
    fields = ('name="top_k"', b"2"), ("NAME=logits", b" true ")
    assert read(form(fields[0], image, fields[1]), kind) == Request([picture], options=Options(2, True))
    several = read(form(("name=data", PICTURE), ('filename="b.png"; name="file"', b"")), kind, Options(3))
    assert several == Request([PICTURE, b""], several=True, options=Options(3))
    assert read(form(image, boundary="a b'()+_,-./:=?"), 'multipart/form-data; boundary="a b\'()+_,-./:=?"')


def test_a_form_of_a_page_has_other_fields_and_inputs_without_a_file():
    kind = 'multipart/form-data; boundary="x;z"'
    parts = (
        ('name="token"', b"abc"),
        ('name="a"; filename="a; name=top_k"', PICTURE),
        ("name=\"b\"; filename*=UTF-8''%e2%82%ac.jpg", PICTURE),
        ('name="c"; filename=""\r\nContent-Type: application/octet-stream', b""),
        ('name="send"', b"Send"),
    )
    assert read(form(*parts, boundary="x;z"), kind) == Request([PICTURE, PICTURE], several=True)
    with pytest.raises(RequestError, match="has 0 images"):
        read(form(parts[3], boundary="x;z"), kind)


def test_a_form_as_an_http_client_writes_it():
    prepared = requests.Request(
        "POST", "http://localhost", files={"image": ("a;b.jpg", PICTURE, "image/jpeg")}, data={"top_k": "1"}
    ).prepare()
    assert read(prepared.body, prepared.headers["Content-Type"]) == Request([PICTURE], options=Options(1))


@pytest.mark.parametrize(
    ("status", "kind", "body", "said"),
    [
        (415, "text/plain", b"dog", "content type 'text/plain' is not supported"),
        (415, "image/svg+xml", b"<svg/>", "is not supported"),
        (415, "application/x-www-form-urlencoded", b"", "send the bytes of an image"),
        (400, "application/json", b"", "not JSON"),
        (400, "application/json", b"\xff\xfe\x00", "not JSON"),
        (400, "application/json", b"[" * 100_000, "nested too deeply"),
        (400, "application/json", b'{"image": "\xe9"}', "not JSON: byte 11 is not UTF-8."),
        (400, "application/json", b'{"image": ' + b"9" * 10_000 + b"}", "not JSON: a number with too many digits."),
        (400, "application/json", b"[]", 'object with "image"'),
        (400, "application/json", b"{}", 'object with "image"'),
        (400, "application/json", b'{"image": "", "images": []}', 'object with "image"'),
        (400, "application/json", b'{"image": "https://example.org/dog.jpg"}', "addresses are not fetched"),
        (400, "application/json", b'{"image": ["aGk="]}', "is the base64"),
        (400, "application/json", '{"image": "ä"}'.encode(), "is the base64"),
        (400, "application/json", b'{"images": []}', "a list of 1 to 64"),
        (400, "application/json", json.dumps({"images": [""] * 65}).encode(), "a list of 1 to 64"),
        (400, "application/json", b'{"image": "", "url": "file:///etc/passwd"}', "unknown key 'url'; known are image"),
        (400, "application/json", b'{"image": "", "top_k": 0}', "top_k is 0; it must be a whole number from 1"),
        (400, "application/json", b'{"image": "", "top_k": true}', "top_k is True"),
        (400, "application/json", b'{"image": "", "top_k": 2.0}', "top_k is 2.0"),
        (400, "application/json", b'{"image": "", "logits": []}', "logits is []; it must be 0 or 1"),
        (400, "application/json", b'{"image": "data:image/png,%89PNG"}', "is the base64"),
        (400, "application/json", b'{"image": "data:image/png;base64"}', "is the base64"),
        (400, "application/json", b'{"image": "data:image/png;base64,http://a"}', "is the base64"),
        (400, "multipart/form-data", form(("name=image", b"")), "The form is incomplete"),
        (400, "multipart/form-data; boundary=xyz", form(("name=image", b""))[:-4], "The form is incomplete"),
        (400, "multipart/form-data; boundary=other", form(("name=image", b"")), "The form is incomplete"),
        (400, "multipart/form-data; boundary=xyz", form(("name=top_k", b"1")), "has 0 images; send 1 to 64"),
        (400, "multipart/form-data; boundary=xyz", form(*[("name=image", b"")] * 65), "has 65 images; send 1 to 64"),
        (400, "multipart/form-data; boundary=xyz", form(*[("name=image", b"")] * 99), "or over 80 parts"),
        (400, "multipart/form-data; boundary=xyz", form(("name=i", b""), ("name=top_k", b"x")), "top_k is 'x'"),
        (400, "image/jpeg; top_k=many", b"", "top_k is 'many'"),
        (400, "image/jpeg; top_k=" + "9" * 5000, b"", "top_k is '999"),
    ],
)
def test_what_is_refused(status, kind, body, said):
    with pytest.raises(RequestError) as refused:
        read(body, kind)
    assert refused.value.status == status
    assert said in str(refused.value)
    assert len(str(refused.value)) < 400
    assert str(refused.value).endswith(".")


def test_the_nearer_option_wins():
    body = json.dumps({"image": TEXT, "top_k": 1})
    assert read(body, "application/json; top_k=2", Options(3)).options.top_k == 1
    assert read(PICTURE, "image/png; top_k=2; logits=1", Options(3)).options == Options(2, True)
    assert read(PICTURE, "image/png", Options(3)).options.top_k == 3


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, ("application/json", Options())),
        ("", ("application/json", Options())),
        ("*/*", ("application/json", Options())),
        ("text/html,application/xhtml+xml,*/*;q=0.8", ("application/json", Options())),
        ("text/csv", ("text/csv", Options())),
        ("application/json;q=0, text/csv", ("text/csv", Options())),
        ("application/json;q=0.1, text/csv; top_k=2", ("text/csv", Options(2))),
        ('Application/JSON; top_k="7"; logits=true', ("application/json", Options(7, True))),
    ],
)
def test_accept(header, expected):
    assert negotiate(header) == expected


@pytest.mark.parametrize("header", ["text/html, image/*;q=x", "application/json;q=0"])
def test_accept_neither(header):
    with pytest.raises(RequestError, match="Accept names neither") as refused:
        negotiate(header)
    assert refused.value.status == 406


def test_answers():
    one = Request([PICTURE], options=Options(top_k=1))
    assert json.loads(write(one, [ANSWER])) == {
        "predictions": [{"label": "Beagle", "index": 2, "probability": 0.75}],
    }
    whole = Request([PICTURE], options=Options(logits=True))
    assert json.loads(write(whole, [ANSWER]))["logits"] == [1.5, -2.0, 3.25]
    assert write(whole, [ANSWER], "text/csv") == 'Beagle,2,0.75\n"Saint, Bernard",0,0.25\n'
    several = Request([PICTURE, b""], several=True, options=Options(top_k=1))
    results = json.loads(write(several, [ANSWER, DogbreedError("It cannot be used.")]))["results"]
    assert results[0]["predictions"][0]["label"] == "Beagle"
    assert results[1] == {"error": "It cannot be used."}


def test_answers_that_are_none():
    with pytest.raises(RequestError, match="cannot be used") as refused:
        write(Request([b""]), [DogbreedError("The image cannot be used.")])
    assert refused.value.status == 400
    with pytest.raises(RequestError, match="send one image for text/csv") as refused:
        write(Request([b""], several=True), [ANSWER], "text/csv")
    assert refused.value.status == 406


def refusal(body, kind):
    """The status of the refusal, None for a request that is understood."""
    try:
        assert read(body, kind).images
    except RequestError as refused:
        return refused.status
    return None


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=200), st.one_of(st.text(max_size=80), st.just("application/json"), st.just("image/png;top_k="))
)
def test_whatever_comes_is_read_or_refused(body, kind):
    status = refusal(body, kind)
    assert status is None or 400 <= status < 500
    parse_media_type(kind)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.sampled_from([b"--xyz", b"\r\n", b"--", b"Content-Disposition: form-data; name=", b"top_k", b"1", b"\xff"])
    )
)
def test_whatever_form_comes_is_read_or_refused(pieces):
    assert refusal(b"".join(pieces), "multipart/form-data; boundary=xyz") in (None, 400)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50).filter(lambda data: b"\r\n--xyz" not in data), min_size=1, max_size=5))
def test_every_form_gives_its_parts_back(images):
    request = read(form(*[("name=image", image) for image in images]), "multipart/form-data; boundary=xyz")
    assert request == Request(images, several=len(images) > 1)


@settings(deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_whatever_data_url_comes_is_read_or_refused(head, tail):
    assert refusal(json.dumps({"image": f"data:{head},{tail}"}), "application/json") in (None, 400)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(schema.KEYS), x),
    )
)
@pytest.mark.slow
def test_whatever_json_comes_is_read_or_refused(content):
    assert refusal(json.dumps(content), "application/json") in (None, 400)
