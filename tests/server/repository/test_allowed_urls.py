"""Which URLs match, which hosts a pattern names, which addresses may be connected to, and how URLs are read and shown."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.server.repository.allowed_urls import (
    URL_CHARS_MAX,
    AllowedUrls,
    BadUrl,
    climbs,
    file_name,
    is_public,
    parse_file,
    parse_http,
    parse_s3,
    redirected,
    shown_url,
    why_refused,
)

TORCHSERVE_DEFAULT = "file://.*|http(s)?://.*"


@pytest.mark.parametrize(
    ("patterns", "url", "matches"),
    [
        ((), "https://a/x.mar", False),
        (("https://a/.*",), "https://a/x.mar", True),
        (("https://a/.*",), "HTTPS://A/x.mar", True),
        (("https://a/.*",), "https://a.evil/x.mar", False),
        (("https://a/.*", "s3://b/.*"), "s3://b/x.mar", True),
        (("https://a/x",), "https://a/x.mar", False),  # the whole URL, not its beginning
        ((TORCHSERVE_DEFAULT,), "file:///x.mar", True),
        ((TORCHSERVE_DEFAULT,), "s3://b/x.mar", False),
        ((".*",), "https://a/" + "x" * URL_CHARS_MAX, False),  # patterns may take long for long ones
    ],
)
def test_a_url_is_allowed_when_a_pattern_matches_all_of_it(patterns: tuple[str, ...], url: str, matches: bool) -> None:
    assert AllowedUrls(patterns).match(url) is matches


def test_a_pattern_that_is_no_regular_expression_is_named() -> None:
    with pytest.raises(ValueError, match=r"^expected regular expressions separated by commas, got 'b\(' \(missing"):
        AllowedUrls(("a", "b("))


@pytest.mark.parametrize(
    ("pattern", "url", "host", "named"),
    [
        (r"http://10\.0\.0\.5/.*", "http://10.0.0.5/x.mar", "10.0.0.5", True),
        ("http://10.0.0.5/.*", "http://10.0.0.5/x.mar", "10.0.0.5", True),
        (r"http://10\.0\.0\.5:8000/.*", "http://10.0.0.5:8000/x.mar", "10.0.0.5", True),
        (r"http://10\.0\.0\.5.*", "http://10.0.0.5/x.mar", "10.0.0.5", True),
        ("http(s)?://minio.internal(:9000)?/.*", "https://minio.internal/x.mar", "minio.internal", True),
        (r"http:\/\/Minio-1\.internal\/.*", "http://MINIO-1.internal/x.mar", "minio-1.internal", True),
        (r"http://\[fd00::1\]/.*", "http://[fd00::1]/x.mar", "fd00::1", True),
        ("https://a/.*|http://b/.*", "http://b/x.mar", "b", True),
        ("(?!http://10.0.0.1/)http://.*", "http://10.0.0.1:80/x.mar", "10.0.0.1", False),  # it keeps it out
        ("http://(?:.(?<!http://10.0.0.1/))*", "http://10.0.0.1:80/x.mar", "10.0.0.1", False),
        ("(http://b)/.*", "http://b/x.mar", "b", True),
        ("http://.*", "http://10.0.0.5/x.mar", "10.0.0.5", False),
        ("http://10.*", "http://10.0.0.5/x.mar", "10.0.0.5", False),
        (r"http://10\.0\.0\.[0-9]+/.*", "http://10.0.0.5/x.mar", "10.0.0.5", False),
        (r"http://10\.0\.0\.5?/.*", "http://10.0.0.5/x.mar", "10.0.0.5", False),
        (r"http://10\.0\.0\.\d/.*", "http://10.0.0.5/x.mar", "10.0.0.5", False),
        (r"http://(10\.0\.0\.5)?.*", "http://10.0.0.5/x.mar", "10.0.0.5", False),
        (r"http://.*\.internal/.*", "http://minio.internal/x.mar", "minio.internal", False),
        (r"http://10\.0\.0\.6/.*", "http://10.0.0.5/x.mar", "10.0.0.5", False),
        (r"http://10\.0\.0\.5/models/.*", "http://10.0.0.5/x.mar", "10.0.0.5", False),  # it does not match
        ("http://a.internal/.*", "http://axinternal/x.mar", "axinternal", False),  # a dot that matched something else
    ],
)
def test_a_pattern_names_the_host_it_spells_out(pattern: str, url: str, host: str, named: bool) -> None:
    assert AllowedUrls((pattern,)).name(url, host) is named


NOT_PUBLIC = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.8.8.8",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_an_address_that_is_not_public_needs_a_pattern_that_names_the_host(text: str) -> None:
    address = ip_address(text)
    assert not is_public(address)
    for first_hop in (True, False):
        assert why_refused("models.example", [address], named=False, first_hop=first_hop) is not None
        assert why_refused("models.example", [ip_address("8.8.8.8"), address], named=False, first_hop=first_hop)


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "2606:4700::1111"]
)
def test_a_public_address_needs_no_name(text: str) -> None:
    assert is_public(ip_address(text))
    assert why_refused("models.example", [ip_address(text)], named=False, first_hop=False) is None


@pytest.mark.parametrize(
    ("host", "addresses", "named", "first_hop", "allowed"),
    [
        ("127.0.0.1", ["127.0.0.1"], False, True, True),
        ("::1", ["::1"], False, True, True),
        ("localhost", ["::1", "127.0.0.1"], False, True, True),
        ("localhost", ["10.0.0.1"], False, True, False),
        ("127.0.0.1", ["127.0.0.1"], False, False, False),  # where a server redirects to
        ("localhost", ["127.0.0.1"], False, False, False),
        ("127.0.0.1", ["127.0.0.1"], True, False, True),
        ("127.1", ["127.0.0.1"], False, True, False),
        ("2130706433", ["127.0.0.1"], False, True, False),
        ("0x7f.1", ["127.0.0.1"], False, True, False),
        ("localhost.", ["127.0.0.1"], False, True, False),
        ("0", ["0.0.0.0"], False, True, False),
        ("minio.internal", ["10.0.0.9"], True, True, True),
        ("minio.internal", ["10.0.0.9"], True, False, True),
        ("10.0.0.9", ["10.0.0.9"], True, True, True),
        ("minio.internal", ["169.254.169.254"], True, True, False),  # a name may change its mind
        ("minio.internal", ["10.0.0.9", "169.254.169.254"], True, True, False),
        ("169.254.169.254", ["169.254.169.254"], True, True, True),
        ("169.254.169.254", ["169.254.169.254"], False, True, False),
        ("models.example", ["168.63.129.16"], False, True, False),  # a public address, and Azure's metadata service
        ("models.example", ["168.63.129.16"], True, True, False),
        ("models.example", ["::ffff:169.254.169.254"], True, True, False),
        ("models.example", [], True, True, False),
    ],
)
def test_what_may_be_connected_to(host: str, addresses: list[str], named: bool, first_hop: bool, allowed: bool) -> None:
    found = [ip_address(text) for text in addresses]
    assert (why_refused(host, found, named=named, first_hop=first_hop) is None) is allowed


def test_a_refusal_names_the_host_and_what_it_was_found_to_be() -> None:
    why = why_refused("127.1", [ip_address("127.0.0.1")], named=False, first_hop=True)
    assert why == "127.1 (127.0.0.1) is not a public address, and no entry of allowed_urls that matches names this host"
    why = why_refused("a.example", [ip_address("169.254.1.1")], named=True, first_hop=True)
    assert why == "a.example (169.254.1.1) is a link-local or metadata address, which allowed_urls has to name"


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://Host.Example/x.mar", "http://host.example/x.mar"),
        ("https://host:443/x.mar", "https://host/x.mar"),
        ("http://host:8000/x.mar?a=b&c=%20#part", "http://host:8000/x.mar?a=b&c=%20"),
        ("http://[::1]:80/a%2Fb.mar", "http://[::1]/a%2Fb.mar"),
        ("http://host/grün.mar", "http://host/gr%C3%BCn.mar"),
        ("http://host", "http://host/"),
    ],
)
def test_an_http_url_is_sent_in_one_spelling(url: str, sent: str) -> None:
    assert str(parse_http(url)) == sent


@pytest.mark.parametrize(
    "url",
    [
        "http:x.mar",
        "http:///x.mar",
        "http://user@host/x.mar",
        "http://user:word@host/x.mar",
        "https://allowed.example@169.254.169.254/x.mar",
        "http://ho st/x.mar",
        "http://host\\@evil/x.mar",
        "http://host/x\ny.mar",
        "http://host\t/x.mar",
        "http://host:port/x.mar",
        "http://host:99999/x.mar",
        "http://[::1/x.mar",
        "http://[host]/x.mar",
        "http://[v1.x]/x.mar",
        "http://127%2e0.0.1/x.mar",
        "http://①27.0.0.1/x.mar",
        "http://h\u3002st/x.mar",
        "ftp://host/x.mar",
        "http://host/" + "x" * URL_CHARS_MAX,
    ],
)
def test_a_url_that_can_be_read_in_two_ways_is_refused(url: str) -> None:
    with pytest.raises(BadUrl):
        parse_http(url)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/y.mar", "https://host/y.mar"),
        ("y.mar", "https://host/a/y.mar"),
        ("//other/y.mar", "https://other/y.mar"),
        ("https://other:8443/y.mar", "https://other:8443/y.mar"),
        ("?again", "https://host/a/x.mar?again"),
    ],
)
def test_a_redirect_is_read_from_where_it_stands(location: str, target: str) -> None:
    assert str(redirected(parse_http("https://host/a/x.mar"), location)) == target


@pytest.mark.parametrize(
    "location", ["http://host/y.mar", "file:///etc/passwd", "s3://b/k", "//u@h/y", "gopher://h/", "//[", "a\\b", "x y"]
)
def test_a_redirect_to_another_protocol_or_to_no_url_is_refused(location: str) -> None:
    with pytest.raises(BadUrl):
        redirected(parse_http("https://host/a/x.mar"), location)


@pytest.mark.parametrize("url", ["file:///a/x%20y.mar", "file:/a/x%20y.mar", "FILE://localhost/a/x%20y.mar"])
def test_a_file_url_is_an_absolute_path_of_this_machine(url: str) -> None:
    assert parse_file(url) == "/a/x y.mar"


@pytest.mark.parametrize(
    "url",
    ["file:x.mar", "file://host/x.mar", "file:///x.mar?a", "file:///x.mar#a", "file:///a%00.mar", "file://[/x.mar"],
)
def test_any_other_file_url_is_refused(url: str) -> None:
    with pytest.raises(BadUrl):
        parse_file(url)


def test_an_s3_url_is_a_bucket_and_a_key() -> None:
    assert parse_s3("s3://bucket/a/b%20c.mar") == ("bucket", "a/b%20c.mar")
    for url in ("s3://bucket", "s3://bucket/", "s3:///x.mar", "s3://bucket/x.mar?versionId=1", "s3:bucket/x.mar"):
        with pytest.raises(BadUrl, match=r"^expected s3://bucket/key$"):
            parse_s3(url)


@pytest.mark.parametrize("url", ["http://h/a/x.mar", "http://h/x.mar?sig=a/b.zip", "file:///x.mar", "s3://b/k/x.mar"])
def test_the_file_is_named_by_the_last_component(url: str) -> None:
    assert file_name(url) == "x.mar"


@pytest.mark.parametrize("name", ["x.tar.gz", "x.TGZ", "X.Mar"])
def test_every_format_of_an_archive_can_be_named(name: str) -> None:
    assert file_name(f"https://h/a/{name}?v=1") == name


@pytest.mark.parametrize(
    "url",
    ["http://h/", "http://h", "http://h/x.zip", "http://h/.x.mar", "http://h/.mar", "http://h/x.mar/", "http://["],
)
def test_a_url_that_names_no_archive_is_refused(url: str) -> None:
    with pytest.raises(BadUrl):
        file_name(url)


def test_a_name_too_long_for_the_disk_is_refused() -> None:
    with pytest.raises(BadUrl, match=r"at most 220 bytes, got 304$"):
        file_name("http://h/" + "ü" * 150 + ".mar")


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://h/../x.mar", True),
        ("http://h/a/%2e%2e/x.mar", True),
        ("http://h/a/.%2E/x.mar", True),
        ("http://h/a.b/x.mar", False),
        ("http://h/x.mar?sig=%2e%2e", False),
    ],
)
def test_climbing_is_seen_plain_and_encoded(url: str, found: bool) -> None:
    assert climbs(url) is found


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host/x.mar", "http://host/x.mar"),
        ("http://user:secret@host/x.mar", "http://***@host/x.mar"),
        ("HTTPS://a@secret@host/x.mar", "HTTPS://***@host/x.mar"),
        ("http:\\\\user:secret@host/x.mar", "http:\\\\***@host/x.mar"),
        ("https://host/x.mar?X-Amz-Signature=secret", "https://host/x.mar?***"),
        ("https://host/x.mar?sig=secret#secret", "https://host/x.mar?***"),
        ("https://host/a@b/x.mar", "https://host/a@b/x.mar"),
        (" http://user:secret@host/x.mar", "http://***@host/x.mar"),
        ("http://host/\x1b[2J\n2026 all is well", "http://host/\\x1b[2J\\n2026 all is well"),
        ("http://" + "h" * 10_000, "http://" + "h" * 293 + "…"),
    ],
)
def test_what_a_url_keeps_secret_is_not_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@given(
    st.text(max_size=60).map("http://".__add__)
    | st.from_regex(r"https?://[a-z0-9.@:\[\]%\\/?#-]{0,40}", fullmatch=True)
)
def test_any_text_is_read_or_refused(url: str) -> None:
    """And what is read says the same when it is read again."""
    try:
        found = parse_http(url)
    except BadUrl:
        return
    assert parse_http(str(found)) == found
    assert "@" not in found.netloc
