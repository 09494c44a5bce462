"""Refusals: each reset has an answer, and it tells strangers no names of the private network."""

import json

import pytest

from sockgw.http.headers import get
from sockgw.outer.refusals import Refusal, answer, for_reset
from sockgw.protocol.errors import StreamCode

# RFC 9209, section 2.3.
PROXY_ERRORS = {
    "dns_error",
    "destination_not_found",
    "destination_unavailable",
    "destination_ip_prohibited",
    "destination_ip_unroutable",
    "connection_refused",
    "connection_terminated",
    "connection_timeout",
    "connection_read_timeout",
    "connection_limit_reached",
    "tls_certificate_error",
    "http_request_error",
    "http_request_denied",
    "http_response_incomplete",
    "http_response_header_section_size",
    "http_response_timeout",
    "http_protocol_error",
    "proxy_internal_error",
}


@pytest.mark.parametrize("code", StreamCode)
def test_every_code_has_an_answer(code):
    refusal = for_reset(code)
    assert refusal.status in (502, 503, 504)
    assert refusal.error in PROXY_ERRORS
    assert refusal.reason


def test_plain_text_with_all_that_an_operator_needs():
    head, body = answer(Refusal(503, "full", "connection_limit_reached", 7), [], "r-1")
    assert (head.status, head.reason) == (503, b"Service Unavailable")
    assert body == b"full\n"
    assert get(head.headers, b"proxy-status") == b"sockgw; error=connection_limit_reached"
    assert get(head.headers, b"x-request-id") == b"r-1"
    assert get(head.headers, b"retry-after") == b"7"
    assert get(head.headers, b"content-length") == b"5"


@pytest.mark.parametrize("accept", [b"application/json", b"text/html, application/problem+json"])
def test_json_where_it_is_asked_for(accept):
    head, body = answer(Refusal(404, 'no "x"', "dns_error"), [(b"Accept", accept)], "r-1")
    assert get(head.headers, b"content-type") == b"application/problem+json"
    assert json.loads(body) == {
        "title": "Not Found",
        "status": 404,
        "detail": 'no "x"',
        "request_id": "r-1",
    }
