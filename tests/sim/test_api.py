"""ETSI GS QKD 014 v1.1.1, clause by clause, and this KME's word where the standard is silent."""

import base64
import json
import random
import uuid
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.config.model import KmeSimConfig, LinkConfig
from qproxy.net.http_server import Request
from qproxy.sim.api import KmeApi, Site
from qproxy.sim.build import build_network
from qproxy.sim.store import KeyStore

ODD = "gw/c 1%ü"
SAES = {"gw-a": "kme-a", "gw-a2": "kme-a", "gw-b": "kme-b", "gw-b2": "kme-b", ODD: "kme-b"}
LIMITS = LinkConfig(key_rate_bps=0.0, initial_key_count=50, max_key_count=100)
NOT_FOUND = "one or more keys specified are not found on KME"


class Pair:
    """Both KMEs at time zero, driven without a socket."""

    def __init__(self, limits=LIMITS, store=None):
        kmes = {"kme-a": None, "kme-b": None}
        config = KmeSimConfig(path=None, kmes=kmes, saes=SAES, link=limits)
        network = build_network(config, now=0.0, random_bytes=random.Random(1).randbytes)
        network.store = store or network.store
        self.link, self.route = network.spans["link"], network.routes["link"]
        self.apis = {kme: KmeApi(Site(kme, SAES), network) for kme in kmes}

    def ask(self, sae, method, target, document=None, *, kme=None, body=None, now=0.0, **headers):
        if document is not None:
            body = json.dumps(document).encode()
            headers.setdefault("content-type", "application/json")
        path, _, query = target.partition("?")
        request = Request(method, target, path, query, headers, body or b"")
        kme = kme or SAES.get(sae, "kme-a")
        response = self.apis[kme].handle(sae, request, now)
        assert response.content_type == "application/json"
        assert ("Cache-Control", "no-store") in response.headers
        return response.status, json.loads(response.body), dict(response.headers)

    def keys(self, sae, target, document=None):
        method = "GET" if document is None else "POST"
        status, answer, _ = self.ask(sae, method, target, document)
        assert status == 200, answer
        return answer["keys"]


@pytest.fixture
def pair():
    return Pair()


ENC = "/api/v1/keys/gw-b/enc_keys"
DEC = "/api/v1/keys/gw-a/dec_keys"
STATUS = "/api/v1/keys/gw-b/status"


def ids(keys):
    return {"key_IDs": [{"key_ID": key["key_ID"]} for key in keys]}


# --- 5.2 Get status, 6.1 Status data format -------------------------------------------------


def test_status_has_every_member_of_the_table(pair):
    status, answer, _ = pair.ask("gw-a", "GET", STATUS)
    assert status == 200
    assert answer.pop("status_extension") == {
        "simulated": True,
        "link": "up",
        "qber": 0.01,
        "key_rate_bps": 0.0,
    }
    assert answer == {
        "source_KME_ID": "kme-a",
        "target_KME_ID": "kme-b",
        "master_SAE_ID": "gw-a",
        "slave_SAE_ID": "gw-b",
        "key_size": 256,
        "stored_key_count": 50,
        "max_key_count": 100,
        "max_key_per_request": 128,
        "max_key_size": 1024,
        "min_key_size": 64,
        "max_SAE_ID_count": 0,
    }


def test_status_at_the_other_end_names_the_other_end_first(pair):
    _, answer, _ = pair.ask("gw-b", "GET", "/api/v1/keys/gw-a/status")
    assert (answer["source_KME_ID"], answer["target_KME_ID"]) == ("kme-b", "kme-a")
    assert (answer["master_SAE_ID"], answer["slave_SAE_ID"]) == ("gw-b", "gw-a")


def test_status_tells_how_the_link_is(pair):
    pair.link.cut(0.0)
    _, answer, _ = pair.ask("gw-a", "GET", STATUS)
    assert answer["status_extension"]["link"] == "cut"
    assert answer["status_extension"]["qber"] is None
    assert answer["status_extension"]["simulated"] is True


def test_status_takes_no_key(pair):
    pair.ask("gw-a", "GET", STATUS)
    assert pair.route.stored_key_count(0.0) == 50


# --- 5.3 Get key, 6.2 Key request data format, 6.3 Key container ----------------------------


def test_get_without_parameters_gives_one_key_of_the_default_size(pair):
    (key,) = pair.keys("gw-a", ENC)
    assert set(key) == {"key_ID", "key"}
    assert uuid.UUID(key["key_ID"]).version == 4
    assert len(base64.b64decode(key["key"], validate=True)) == 32


@pytest.mark.parametrize(
    ("query", "number", "size"),
    [("number=3", 3, 256), ("size=512", 1, 512), ("number=2&size=64", 2, 64), ("", 1, 256)],
)
def test_get_with_parameters(pair, query, number, size):
    keys = pair.keys("gw-a", f"{ENC}?{query}")
    assert [len(base64.b64decode(key["key"])) * 8 for key in keys] == [size] * number


@pytest.mark.parametrize(
    ("document", "number", "size"),
    [
        ({}, 1, 256),
        ({"number": 3, "size": 1024}, 3, 1024),
        ({"additional_slave_SAE_IDs": [], "extension_mandatory": []}, 1, 256),
    ],
)
def test_post(pair, document, number, size):
    keys = pair.keys("gw-a", ENC, document)
    assert [len(base64.b64decode(key["key"])) * 8 for key in keys] == [size] * number


def test_post_without_a_body_is_an_empty_request(pair):
    status, answer, _ = pair.ask("gw-a", "POST", ENC)
    assert (status, len(answer["keys"])) == (200, 1)


def test_all_keys_and_ids_differ(pair):
    keys = pair.keys("gw-a", ENC, {"number": 30}) + pair.keys("gw-b", "/api/v1/keys/gw-a/enc_keys")
    assert len({key["key_ID"] for key in keys}) == len({key["key"] for key in keys}) == 31


def test_a_container_says_that_it_is_simulated(pair):
    _, answer, _ = pair.ask("gw-a", "GET", ENC)
    assert answer["key_container_extension"] == {"simulated": True}


def test_keys_leave_the_store_when_given(pair):
    pair.keys("gw-a", ENC, {"number": 20})
    assert pair.ask("gw-b", "GET", "/api/v1/keys/gw-a/status")[1]["stored_key_count"] == 30


@pytest.mark.parametrize("size", [100, 65, 257, 1])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_size_shall_be_a_multiple_of_8(pair, method, size):
    answer = ask_size(pair, method, size)
    assert answer == (400, "size shall be a multiple of 8")


@pytest.mark.parametrize("size", [0, 56, 1032, 10**9])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_size_is_within_what_status_says(pair, method, size):
    assert ask_size(pair, method, size) == (400, "size: expected 64 to 1024 bits")


def ask_size(pair, method, size):
    if method == "GET":
        status, answer, _ = pair.ask("gw-a", "GET", f"{ENC}?size={size}")
    else:
        status, answer, _ = pair.ask("gw-a", "POST", ENC, {"size": size})
    return status, answer["message"]


@pytest.mark.parametrize("number", [0, 129, 10**9])
def test_number_is_within_what_status_says(pair, number):
    for answer in (
        pair.ask("gw-a", "GET", f"{ENC}?number={number}"),
        pair.ask("gw-a", "POST", ENC, {"number": number}),
    ):
        assert answer[:2] == (400, {"message": "number: expected 1 to 128"})
    assert pair.route.stored_key_count(0.0) == 50


def test_additional_slaves_are_refused_as_status_says_that_there_may_be_none(pair):
    status, answer, _ = pair.ask("gw-a", "POST", ENC, {"additional_slave_SAE_IDs": ["gw-b2"]})
    assert status == 400
    assert "max_SAE_ID_count" in answer["message"]
    assert pair.route.stored_key_count(0.0) == 50


def test_mandatory_extensions_are_refused_in_the_prescribed_words(pair):
    document = {"extension_mandatory": [{"abc_route_type": "direct"}]}
    status, answer, _ = pair.ask("gw-a", "POST", ENC, document)
    assert (status, answer["message"]) == (
        400,
        "not all extension_mandatory parameters are supported",
    )
    assert pair.route.stored_key_count(0.0) == 50


def test_optional_extensions_are_ignored_and_the_answer_says_so(pair):
    document = {"extension_optional": [{"abc_max_age": 30000}]}
    status, answer, _ = pair.ask("gw-a", "POST", ENC, document)
    assert (status, len(answer["keys"])) == (200, 1)
    assert answer["key_container_extension"] == {
        "simulated": True,
        "extension_optional": "not all extension_optional request options handled",
    }


@pytest.mark.parametrize(
    "query",
    ["number=x", "number=", "number", "number=-1", "number=1.0", "number=1&number=2", "siez=256",
     "number=%31%", "number=%ff", "number=+1", "key_ID=1", "&&", "number=" + "9" * 40],
)  # fmt: skip
def test_a_query_that_cannot_be_read_is_a_bad_request(pair, query):
    assert pair.ask("gw-a", "GET", f"{ENC}?{query}")[0] == 400
    assert pair.route.stored_key_count(0.0) == 50


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"number":"1"}', b'{"siez":8}'])
def test_a_body_that_cannot_be_read_is_a_bad_request(pair, body):
    status, answer, _ = pair.ask("gw-a", "POST", ENC, body=body)
    assert status == 400
    assert isinstance(answer["message"], str)


def test_a_body_that_says_it_is_no_json_is_a_bad_request(pair):
    for content_type, expected in (("text/plain", 400), ("Application/JSON; charset=utf-8", 200)):
        headers = {"content-type": content_type}
        assert pair.ask("gw-a", "POST", ENC, {}, **headers)[0] == expected


def test_post_takes_no_query_and_get_no_body(pair):
    assert pair.ask("gw-a", "POST", f"{ENC}?number=1", {})[0] == 400
    assert pair.ask("gw-a", "GET", ENC, {"number": 1})[0] == 400
    assert pair.ask("gw-a", "GET", f"{STATUS}?x=1")[0] == 400


def test_what_cannot_be_met_is_503_and_takes_nothing(pair):
    status, answer, _ = pair.ask("gw-a", "GET", f"{ENC}?number=51")
    assert status == 503
    assert answer["details"] == [{"stored_key_count": 50, "link": "up"}]
    assert len(pair.keys("gw-a", f"{ENC}?number=50")) == 50
    assert pair.ask("gw-a", "GET", ENC)[0] == 503


def test_a_cut_link_gives_what_is_stored_and_then_503(pair):
    pair.link.cut(0.0)
    assert len(pair.keys("gw-a", f"{ENC}?number=50")) == 50
    status, answer, _ = pair.ask("gw-a", "GET", ENC, now=1e6)
    assert status == 503
    assert answer["details"][0]["link"] == "cut"


def test_too_many_unclaimed_keys_are_503_and_take_nothing():
    pair = Pair(store=KeyStore(max_unclaimed=2))
    keys = pair.keys("gw-a", f"{ENC}?number=2")
    assert pair.ask("gw-a", "GET", ENC)[0] == 503
    assert pair.route.stored_key_count(0.0) == 48
    pair.keys("gw-b", DEC, ids(keys))
    assert len(pair.keys("gw-a", ENC)) == 1


# --- 5.4 Get key with key IDs, 6.4 Key IDs data format --------------------------------------


def test_the_slave_gets_the_masters_keys_by_post_in_the_order_asked(pair):
    keys = pair.keys("gw-a", f"{ENC}?number=3")
    assert pair.keys("gw-b", DEC, ids(keys[::-1])) == keys[::-1]


def test_the_slave_gets_a_key_by_get(pair):
    (key,) = pair.keys("gw-a", ENC)
    assert pair.keys("gw-b", f"{DEC}?key_ID={key['key_ID']}") == [key]


def test_either_sae_may_be_the_master(pair):
    keys = pair.keys("gw-b", "/api/v1/keys/gw-a/enc_keys")
    assert pair.keys("gw-a", "/api/v1/keys/gw-b/dec_keys", ids(keys)) == keys


def test_extensions_of_key_ids_are_ignored(pair):
    (key,) = pair.keys("gw-a", ENC)
    document = {
        "key_IDs": [{"key_ID": key["key_ID"], "key_ID_extension": {"a": 1}}],
        "key_IDs_extension": {},
    }
    assert pair.keys("gw-b", DEC, document) == [key]


def test_an_older_key_is_still_there_when_newer_ones_were_given(pair):
    first = pair.keys("gw-a", ENC)
    pair.keys("gw-a", f"{ENC}?number=40")
    assert pair.keys("gw-b", DEC, ids(first)) == first


def test_a_key_is_given_to_the_slave_once(pair):
    keys = pair.keys("gw-a", ENC)
    pair.keys("gw-b", DEC, ids(keys))
    assert pair.ask("gw-b", "POST", DEC, ids(keys))[:2] == (400, {"message": NOT_FOUND})


def test_one_key_not_found_refuses_all_and_takes_none(pair):
    keys = pair.keys("gw-a", f"{ENC}?number=2")
    wanted = ids([*keys, {"key_ID": str(uuid.UUID(int=7))}])
    assert pair.ask("gw-b", "POST", DEC, wanted)[:2] == (400, {"message": NOT_FOUND})
    assert pair.keys("gw-b", DEC, ids(keys)) == keys


def test_a_sae_that_was_not_named_in_the_original_request_is_unauthorized(pair):
    keys = pair.keys("gw-a", ENC)
    assert pair.ask("gw-b2", "POST", DEC, ids(keys))[0] == 401
    assert pair.ask("gw-a", "POST", "/api/v1/keys/gw-b/dec_keys", ids(keys))[0] == 401
    assert pair.keys("gw-b", DEC, ids(keys)) == keys


def test_a_slave_that_names_the_wrong_master_does_not_find_the_key(pair):
    keys = pair.keys("gw-a", ENC)
    wrong = "/api/v1/keys/gw-a2/dec_keys"
    assert pair.ask("gw-b", "POST", wrong, ids(keys))[:2] == (400, {"message": NOT_FOUND})
    assert pair.keys("gw-b", DEC, ids(keys)) == keys


def test_a_key_nobody_fetches_is_gone_after_its_time():
    pair = Pair(store=KeyStore(max_age_s=60.0))
    keys = pair.keys("gw-a", ENC)
    assert pair.ask("gw-b", "POST", DEC, ids(keys), now=60.0)[0] == 400


@pytest.mark.parametrize(
    "query", ["", "?key_ID=", "?key_ID=a&key_ID=b", "?key_id=a", "?key_ID=" + "a" * 129]
)
def test_get_takes_exactly_one_key_id(pair, query):
    assert pair.ask("gw-b", "GET", DEC + query)[0] == 400


@pytest.mark.parametrize(
    "document",
    [{}, {"key_IDs": []}, {"key_IDs": "x"}, {"key_IDs": [{"key_ID": "x"}] * 2}, {"key_IDs": [1]}],
    ids=str,
)
def test_key_ids_that_cannot_be_read_are_a_bad_request(pair, document):
    assert pair.ask("gw-b", "POST", DEC, document)[0] == 400


def test_no_more_key_ids_than_keys_per_request(pair):
    many = {"key_IDs": [{"key_ID": str(i)} for i in range(129)]}
    status, answer, _ = pair.ask("gw-b", "POST", DEC, many)
    assert (status, answer["message"]) == (400, "key_IDs: expected at most 128")


# --- who may ask, and where -----------------------------------------------------------------


@pytest.mark.parametrize("target", [STATUS, ENC, f"{DEC}?key_ID=x"])
def test_a_stranger_is_unauthorized(pair, target):
    for requester in (None, "nobody"):
        assert pair.ask(requester, "GET", target)[0] == 401


def test_a_sae_of_the_other_kme_is_unauthorized_here(pair):
    assert pair.ask("gw-b", "GET", "/api/v1/keys/gw-a/status", kme="kme-a")[0] == 401


def test_a_stranger_learns_no_sae_id(pair):
    answers = [pair.ask("x", "GET", f"/api/v1/keys/{i}/status")[:2] for i in ("gw-b", "none")]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("sae", ["nobody", "gw-a", "gw-a2", "GW-B", "%ff", "%", "%zz", "gw-b%00"])
def test_a_sae_that_is_not_across_the_link_is_a_bad_request(pair, sae):
    assert pair.ask("gw-a", "GET", f"/api/v1/keys/{sae}/enc_keys")[0] == 400


def test_sae_ids_are_percent_decoded(pair):
    target = f"/api/v1/keys/{quote(ODD, safe='')}"
    status, answer, _ = pair.ask("gw-a", "GET", f"{target}/status")
    assert (status, answer["slave_SAE_ID"]) == (200, ODD)
    keys = pair.keys("gw-a", f"{target}/enc_keys")
    assert pair.keys(ODD, DEC, ids(keys)) == keys
    assert len(pair.keys("gw-a", "/api/v1/keys/%67w-b/enc_keys")) == 1


@pytest.mark.parametrize(
    "path",
    ["/", "/api/v1/keys/gw-b", "/api/v1/keys/gw-b/", "/api/v1/keys/gw-b/enc_keys/", "//",
     "/api/v1/keys//status", "/api/v2/keys/gw-b/status", "/api/v1/keys/gw-b/Status", "/link",
     "/api/v1/keys/a/b/status", "/api/v1/keys/../keys/gw-b/status", "/api/v1/keys/gw-b/status\n"],
)  # fmt: skip
def test_any_other_path_is_404(pair, path):
    assert pair.ask("gw-a", "GET", path)[0] == 404


@pytest.mark.parametrize(
    ("target", "method", "allow"),
    [
        (STATUS, "POST", "GET"),
        (STATUS, "HEAD", "GET"),
        (ENC, "PUT", "GET, POST"),
        (ENC, "DELETE", "GET, POST"),
        (DEC, "OPTIONS", "GET, POST"),
        (DEC, "get", "GET, POST"),
    ],
)
def test_any_other_method_is_405_and_says_what_is_allowed(pair, target, method, allow):
    status, _, headers = pair.ask("gw-a", method, target)
    assert (status, headers["Allow"]) == (405, allow)


# --- whatever comes -------------------------------------------------------------------------


@given(
    sae=st.sampled_from([None, "gw-a", "gw-b"]),
    method=st.sampled_from(["GET", "POST"]),
    target=st.sampled_from([STATUS, ENC, DEC])
    | st.text(st.characters(min_codepoint=33, max_codepoint=126)).map(
        lambda text: f"/api/v1/keys/{text}"
    ),
    query=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
    body=st.binary(max_size=50)
    | st.dictionaries(
        st.sampled_from(["number", "size", "key_IDs", "extension_mandatory"]),
        st.none() | st.integers() | st.lists(st.dictionaries(st.just("key_ID"), st.text())),
    ).map(lambda value: json.dumps(value).encode()),
)
def test_whatever_comes_the_answer_is_one_of_the_standards(sae, method, target, query, body):
    status, answer, _ = Pair().ask(sae, method, f"{target}?{query}", body=body)
    assert status in {200, 400, 401, 404, 405, 503}
    if status != 200:
        assert set(answer) <= {"message", "details"}


def test_random_traffic_from_both_ends_gives_every_key_once_to_each():
    """A thousand requests in random order, checked against what each side was given."""
    pair, choose = Pair(LinkConfig(key_rate_bps=1e6, initial_key_count=0)), random.Random(7)
    now, open_ids, masters, slaves = 0.0, [], {}, {}
    for _ in range(1000):
        now += choose.random() / 100
        master, slave = choose.sample(["gw-a", "gw-b"], 2)
        if choose.random() < 0.5:
            target = f"/api/v1/keys/{slave}/enc_keys?number={choose.randint(1, 4)}"
            status, answer, _ = pair.ask(master, "GET", target, now=now)
            assert status in {200, 503}
            for key in answer.get("keys", []):
                assert key["key_ID"] not in masters
                masters[key["key_ID"]] = key["key"]
                open_ids.append((master, slave, key["key_ID"]))
        elif open_ids:
            wanted = choose.choice(open_ids)
            master, slave, key_id = wanted
            target = f"/api/v1/keys/{master}/dec_keys?key_ID={key_id}"
            status, answer, _ = pair.ask(slave, "GET", target, now=now)
            if key_id in slaves:
                assert (status, answer["message"]) == (400, NOT_FOUND)
            else:
                assert status == 200
                slaves[key_id] = answer["keys"][0]["key"]
    assert len(slaves) > 100
    assert all(masters[key_id] == key for key_id, key in slaves.items())
