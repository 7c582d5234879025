"""Talking DICOMweb: pages, refusals, cut-off answers, receipts."""

from pathlib import Path

import pytest

from lib.imaging.phantom import make_phantom, write_series
from lib.server.pacs.web import SERIES, DicomWeb, PacsRefused, PacsUnreachable, text
from tests.server.fakepacs import FakePacs


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("series")
    write_series(make_phantom(1, spacing=(8.0, 8.0, 40.0)), folder)
    return sorted(folder.iterdir())


@pytest.fixture
def pacs(series):
    with FakePacs(series) as running:
        yield running


@pytest.fixture
def web(pacs) -> DicomWeb:
    return DicomWeb(pacs.url, timeout_s=1, page=4)


def ids(pacs: FakePacs) -> tuple[str, str]:
    header = next(iter(pacs._headers.values()))
    return str(header.StudyInstanceUID), str(header.SeriesInstanceUID)


@pytest.mark.parametrize(("most", "pages"), [(10_000, True), (3, True), (10_000, False)])
def test_all_pages_are_read_and_none_for_ever(pacs, web, most, pages):
    pacs.most, pacs.pages = most, pages
    found = web.instances(*ids(pacs))
    assert found == sorted(pacs.held) if pages else set(found) < set(pacs.held)
    assert len(pacs.asked) < 20


def test_an_image_comes_as_the_pacs_holds_it(pacs, web):
    uid = next(iter(pacs.held))
    assert web.retrieve(*ids(pacs), uid) == pacs.held[uid]


def test_a_cut_off_image_is_no_image(pacs, web):
    pacs.fault = lambda method, path: 0
    with pytest.raises(PacsUnreachable):
        web.retrieve(*ids(pacs), next(iter(pacs.held)))
    assert web.state.reachable is False
    pacs.fault = lambda method, path: None
    assert list(web.series(Modality="CT"))
    assert web.state.reachable is True
    assert web.state.error == ""


def test_a_silent_pacs_is_given_up_in_time(pacs, web):
    pacs.silent_s = 5
    with pytest.raises(PacsUnreachable, match="in time"):
        web.instances(*ids(pacs))


def test_nobody_there(series):
    with pytest.raises(PacsUnreachable):
        list(DicomWeb("http://127.0.0.1:9/dicom-web", timeout_s=1).series())


@pytest.mark.parametrize(
    ("answer", "words", "final"),
    [
        ((409, '{"Message": "study is locked"}'), "locked", True),
        ((400, "<html>Bad <b>thing</b></html>"), "Bad thing", True),
        ((401, ""), "401", False),
        ((429, ""), "429", False),
        ((503, '{"detail": "maintenance"}'), "maintenance", False),
        ((200, "{}"), "confirm", True),
        (
            (
                202,
                '{"00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3"]},'
                ' "00081197": {"vr": "US", "Value": [42752]}}]}}',
            ),
            "A700H",
            False,
        ),
        (
            (
                409,
                '{"00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3"]},'
                ' "00081197": {"vr": "US", "Value": [43264]}}]}}',
            ),
            "A900H",
            True,
        ),
        ((404, "default backend"), "default backend", False),
        ((403, ""), "403", False),
    ],
)
def test_a_refusal_says_why(pacs, web, answer, words, final):
    pacs.fault = lambda method, path: answer
    with pytest.raises(PacsRefused, match=words) as refusal:
        web.store("1.2.3", b"\0" * 128 + b"DICM")
    assert refusal.value.final is final


def test_what_the_pacs_has_already_counts_as_stored(pacs, web):
    duplicate = (
        '{"00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3"]},'
        ' "00081197": {"vr": "US", "Value": [273]}}]}}'
    )
    pacs.fault = lambda method, path: (409, duplicate)
    web.store("1.2.3", b"")


def test_login_and_prefixes(pacs):
    web = DicomWeb(pacs.url.removesuffix("/dicom-web"), ("ann", "secret"), {"qido": "dicom-web"}, timeout_s=1)
    assert [text(item, SERIES) for item in web.series(Modality="CT")] == [ids(pacs)[1]]
    assert pacs.requests[-1]["authorization"].startswith("Basic ")


@pytest.mark.parametrize("bad", ["../../etc", "1.2/3", "1..2", "", "a.b"])
def test_only_uids_become_names(pacs, web, bad):
    answer = f'[{{"00080018": {{"vr": "UI", "Value": ["{bad}"]}}}}]'
    pacs.fault = lambda method, path: (200, answer)
    assert web.instances("1.2", "1.3") == []


@pytest.mark.parametrize("status", [400, 404, 410])
def test_a_pacs_that_cannot_list_a_series_does_not_say_that_it_holds_it(pacs, web, status):
    pacs.fault = lambda method, path: status
    assert web.holds("1.2", "1.3", "1.4") is False
    pacs.fault = lambda method, path: 500
    with pytest.raises(PacsRefused):
        web.holds("1.2", "1.3", "1.4")
