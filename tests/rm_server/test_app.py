"""The HTTP application in this process, over fake rungs: every way in, and every way to be refused."""

from __future__ import annotations

import base64
import io
import json
import shutil

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load

from data_synth.schema.pixels import encode_png
from finpercep.heatmap import heat_colours, map_samples, overlay
from finpercep.predictor import load_predictor
from finpercep.regions import find_regions
from finpercep.reward import RewardWeights, fuse
from finpercep.wire import (
    TENSOR_MEDIA_TYPE,
    ModelReply,
    ScoreReply,
    ScoreRequest,
    ScoreResponse,
    decode_response,
    encode_request,
    parse_reply,
)
from rm_server import canary
from rm_server.app import create_app
from rm_server.settings import Settings
from tests.fakes import AppTransport, FakePredictor, fake_ladder, photo, registry_of

PHOTO = photo()
PNG = encode_png(PHOTO)
SMALL = encode_png(photo(20, 64))


def http_of(predictors: dict[str, FakePredictor], **settings: object) -> httpx.Client:
    app = create_app(registry_of(predictors), Settings(**{"lanes": 1, **settings}))  # so that a request is one batch
    return httpx.Client(transport=AppTransport(app), base_url="http://server")


@pytest.fixture
def ladder():
    return fake_ladder()


@pytest.fixture
def http(ladder):
    with http_of(ladder) as client:
        yield client


def upload(*bodies: bytes, field: str = "image") -> list[tuple[str, tuple[str, bytes]]]:
    return [(field, (f"{index}.png", body)) for index, body in enumerate(bodies)]


def items(answer: httpx.Response) -> tuple:
    assert answer.status_code == 200, answer.text
    return parse_reply(ScoreReply, answer.content).items


def score_tensors(http: httpx.Client, request: ScoreRequest) -> ScoreResponse:
    answer = http.post("/score", content=encode_request(request), headers={"content-type": TENSOR_MEDIA_TYPE})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == TENSOR_MEDIA_TYPE
    return decode_response(answer.content)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels).permute(2, 0, 1).contiguous()


# --- pictures ---


def test_multipart_gives_the_predictors_assessment(http, ladder):
    answer = http.post("/score", files=upload(PNG))
    expected = ladder["RM_2"].assess(PHOTO)
    (item,) = items(answer)
    assert (item.score, item.reward) == (expected.score, expected.reward)
    assert (item.max_degradation, item.mean_degradation) == (expected.max_degradation, expected.mean_degradation)
    assert [region.box for region in item.regions] == [region.box for region in expected.regions]
    assert item.map is None and item.error is None
    assert answer.json()["model"] == {"name": "fake", "rung": "RM_2", "digest": "digest-of-RM_2"}
    assert answer.headers["finpercep-wire"] == "1"


def test_raw_body_and_multipart_agree(http):
    raw = http.post("/score", content=PNG, headers={"content-type": "image/png"})
    assert items(raw) == items(http.post("/score", files=upload(PNG)))


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated_by_exif() -> tuple[bytes, np.ndarray]:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: viewers turn the stored picture by 90 degrees clockwise
    return encoded(Image.fromarray(PHOTO), "PNG", exif=exif), np.rot90(PHOTO, -1)


def with_alpha() -> tuple[bytes, np.ndarray]:
    alpha = np.full(PHOTO.shape[:2], 255, np.uint8)
    alpha[:10] = 0
    white = PHOTO.copy()
    white[:10] = 255
    return encode_png(np.dstack([PHOTO, alpha])), white


def grey() -> tuple[bytes, np.ndarray]:
    return encode_png(PHOTO[:, :, 0]), np.repeat(PHOTO[:, :, :1], 3, axis=2)


def grey16() -> tuple[bytes, np.ndarray]:
    return encode_png(PHOTO[:, :, 0].astype(np.uint16) * 257), np.repeat(PHOTO[:, :, :1], 3, axis=2)


def lossless_webp() -> tuple[bytes, np.ndarray]:
    return encoded(Image.fromarray(PHOTO), "WEBP", lossless=True), PHOTO


def jpeg() -> tuple[bytes, np.ndarray]:
    body = encoded(Image.fromarray(PHOTO), "JPEG", quality=80)
    return body, np.asarray(Image.open(io.BytesIO(body)))


@pytest.mark.parametrize("make", [rotated_by_exif, with_alpha, grey, grey16, lossless_webp, jpeg])
def test_every_kind_of_picture_scores_as_its_rgb_png(http, make):
    body, pixels = make()
    one, same = items(http.post("/score", files=upload(body, encode_png(np.ascontiguousarray(pixels)))))
    assert one == same and one.error is None


def test_result_does_not_depend_on_the_batch(http):
    others = [encode_png(photo(64, 40, seed)) for seed in range(3)]
    alone = items(http.post("/score", files=upload(PNG)))[0]
    assert items(http.post("/score", files=upload(*others, PNG)))[-1] == alone


def test_one_bad_picture_leaves_its_neighbours_alone(http):
    good, broken, small, again = items(http.post("/score", files=upload(PNG, b"not a picture", SMALL, PNG)))
    assert good == again == items(http.post("/score", files=upload(PNG)))[0]
    assert "not a picture" in broken.error and broken.score is None
    assert small.error == "image must be at least 32 px on each side, got 64x20" and small.reward is None


def test_reward_weights_and_rung(http, ladder):
    weights = RewardWeights(2, 0.25, 0, 0.5)
    query = {"rung": "RM_1", "w_score": 2, "w_max": 0.25, "w_mean": 0, "top_fraction": 0.5}
    (item,) = items(http.post("/score", files=upload(PNG), params=query))
    assert item.reward == ladder["RM_1"].assess(PHOTO, weights).reward
    by_digest = http.post("/score", files=upload(PNG), params={"rung": "digest-of-RM_1"})
    assert by_digest.json()["model"]["rung"] == "RM_1"


def test_rung_without_a_map_has_nulls(http, ladder):
    (item,) = items(http.post("/score", files=upload(PNG), params={"rung": "RM_0", "map": "png"}))
    assert item.score == ladder["RM_0"].assess(PHOTO).score
    assert (item.max_degradation, item.mean_degradation, item.regions, item.map) == (None,) * 4


def test_maps_come_as_pictures(http, ladder):
    degradation = ladder["RM_2"].assess(PHOTO).map.numpy()
    expected = {"png": map_samples(degradation), "heatmap": heat_colours(degradation), "overlay": overlay(PHOTO, degradation)}
    for kind, pixels in expected.items():
        (item,) = items(http.post("/score", files=upload(PNG), params={"map": kind}))
        with Image.open(io.BytesIO(base64.b64decode(item.map))) as picture:
            assert picture.format == "PNG"
            np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_json_with_base64_and_multipart_agree(http):
    text = base64.b64encode(PNG).decode()
    expected = items(http.post("/score", files=upload(PNG)))
    assert items(http.post("/score", json={"image": text})) == expected
    assert items(http.post("/score", json={"image": [text, f"data:image/png;base64,{text}"]})) == expected * 2


def test_a_raw_map_is_the_map(http, ladder):
    (item,) = items(http.post("/score", files=upload(PNG), params={"map": "raw"}))
    expected = ladder["RM_2"].assess(PHOTO).map
    assert torch.equal(load(base64.b64decode(item.map))["map"], expected)


@pytest.mark.parametrize(("side", "shape"), [(16, (12, 16)), (64, (48, 64)), (128, (96, 128))])
def test_a_map_of_another_size_keeps_its_mean(http, side, shape):
    (item,) = items(http.post("/score", files=upload(PNG), params={"map": "raw", "map_size": side}))
    resized = load(base64.b64decode(item.map))["map"]
    assert resized.shape == shape
    assert float(resized.mean()) == pytest.approx(item.mean_degradation, rel=1e-2)
    (picture,) = items(http.post("/score", files=upload(PNG), params={"map": "overlay", "map_size": side}))
    with Image.open(io.BytesIO(base64.b64decode(picture.map))) as opened:
        assert opened.size == shape[::-1]


def test_regions_follow_their_threshold_and_may_be_left_out(http, ladder):
    degradation = ladder["RM_2"].assess(PHOTO).map
    query = {"region_threshold": 0.03, "region_min_area": 2}
    (item,) = items(http.post("/score", files=upload(PNG), params=query))
    assert [region.box for region in item.regions] == [region.box for region in find_regions(degradation, 0.03, 2)]
    assert item.regions
    (without,) = items(http.post("/score", files=upload(PNG), params={"regions": "false"}))
    assert without.regions is None and without.score == item.score


@pytest.mark.parametrize(("wanted", "rung"), [("0", "RM_0"), ("1", "RM_1"), ("-1", "RM_2"), ("digest-of-RM_0", "RM_0")])
def test_a_rung_by_index_and_digest(http, wanted, rung):
    assert http.post("/score", files=upload(PNG), params={"rung": wanted}).json()["model"]["rung"] == rung


def test_an_lr_picture_for_a_rung_that_takes_none_is_that_images_error(http):
    files = [*upload(PNG, PNG), *upload(SMALL, SMALL, field="lr")]
    assert all("RM_2 takes no LR picture" in item.error for item in items(http.post("/score", files=files)))
    answer = http.post("/score", files=[*upload(PNG, PNG), *upload(SMALL, field="lr")])
    assert answer.status_code == 400 and "one 'lr' for each of the 2 images" in refusal(answer)


# --- tensors ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_tensors_run_as_one_batch_with_autograds_gradient(http, ladder, dtype):
    values = torch.stack([as_tensor(photo(seed=seed)) for seed in range(3)])
    images = values if dtype == torch.uint8 else (values / 255).to(dtype)
    weights = RewardWeights(1, 2, 3)
    got = score_tensors(http, ScoreRequest(images, "RM_1", weights, grad=True, map=True))
    assert ladder["RM_1"].batches == [(3, 3, 48, 64)]
    pixels = (images / 255 if dtype == torch.uint8 else images.float()).requires_grad_()
    batch = ladder["RM_1"].score(pixels)
    expected = fuse(batch.score, batch.map, weights)
    (grad,) = torch.autograd.grad(expected.reward.sum(), pixels)
    for name in ("score", "reward", "max_degradation", "mean_degradation"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name).detach(), rtol=0, atol=0)
    torch.testing.assert_close(got.maps, batch.map.detach(), rtol=0, atol=0)
    torch.testing.assert_close(got.grads, grad, rtol=0, atol=0)


def test_tensors_of_several_sizes(http):
    one, other = as_tensor(photo()), as_tensor(photo(40, 40, 1))
    both = score_tensors(http, ScoreRequest((one, other), grad=True, map=True))
    alone = score_tensors(http, ScoreRequest(other[None], grad=True, map=True))
    assert both.score[1] == alone.score[0]
    torch.testing.assert_close(both.grads[1], alone.grads[0], rtol=0, atol=0)
    torch.testing.assert_close(both.maps[1], alone.maps[0], rtol=0, atol=0)


def test_tensor_and_picture_agree(http):
    (item,) = items(http.post("/score", files=upload(PNG)))
    tensor = score_tensors(http, ScoreRequest(as_tensor(PHOTO)[None]))
    assert (float(tensor.score), float(tensor.reward)) == (item.score, item.reward)


def test_one_small_tensor_leaves_its_neighbour_alone(http):
    got = score_tensors(http, ScoreRequest((as_tensor(PHOTO), torch.zeros(3, 8, 40)), grad=True))
    assert got.errors == {1: "image must be at least 32 px on each side, got 40x8"}
    assert got.score[0].isfinite() and got.score[1].isnan() and got.grads[1] is None


def test_not_finite_is_an_error_never_a_number():
    def spoil(batch):
        broken = batch.score.clone()
        broken[-1] = float("nan")
        return type(batch)(broken, batch.map)

    with http_of({"RM_1": FakePredictor(spoil=spoil)}) as http:
        got = score_tensors(http, ScoreRequest(torch.rand(2, 3, 32, 32), grad=True, map=True))
        assert list(got.errors) == [1] and "not finite" in got.errors[1]
        assert got.reward[0].isfinite() and got.maps[1] is None
        answer = http.post("/score", files=upload(PNG))
        assert answer.status_code == 500 and "not finite" in answer.json()["detail"]
        good, broken = items(http.post("/score", files=upload(PNG, PNG)))  # one batch, the last of which is spoilt
        assert good.error is None and "not finite" in broken.error and broken.score is None


def test_a_model_that_raises_is_a_sentence_too():
    def spoil(_):
        raise RuntimeError("out of memory")

    with http_of({"RM_1": FakePredictor(spoil=spoil)}) as http:
        answer = http.post("/score", files=upload(PNG))
        assert answer.status_code == 500
        assert refusal(answer) == "RM_1 failed on this image; the server's log says why"
        got = http.post(
            "/score", content=encode_request(ScoreRequest(torch.rand(1, 3, 32, 32))), headers={"content-type": TENSOR_MEDIA_TYPE}
        )
        assert got.status_code == 500


# --- refusals: a 4xx and one sentence ---


def refusal(answer: httpx.Response) -> str:
    """The sentence of problem details (RFC 9457)."""
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) - {"field", "expected", "received"} == {"type", "title", "status", "detail"}
    assert problem["status"] == answer.status_code and problem["type"].startswith("urn:finpercep:")
    detail = problem["detail"]
    assert isinstance(detail, str) and "\n" not in detail
    return detail


@pytest.mark.parametrize(
    ("body", "content_type", "status", "words"),
    [
        (b"{}", "application/json", 422, "image: Field required"),
        (b'{"image": []}', "application/json", 400, "at least one file"),
        (b'{"image": "%%%"}', "application/json", 422, "image: not base64"),
        (b'{"image": "AAAA", "url": "http://x"}', "application/json", 422, "url: Extra inputs"),
        (b"not json", "application/json", 422, "Invalid JSON"),
        (b"x=1", "application/x-www-form-urlencoded", 415, "curl -F image=@photo.png"),
        (b"", "image/png", 422, "0 bytes: not a picture"),
        (b"not a picture", "image/png", 422, "13 bytes: not a picture"),
        (PNG[:100], "image/png", 422, "damaged picture"),
        (SMALL, "image/png", 422, "at least 32 px on each side, got 64x20"),
        (b"garbage", TENSOR_MEDIA_TYPE, 422, "score request: body: expected a safetensors file"),
        (encode_request(ScoreRequest(torch.zeros(1, 3, 8, 8))), TENSOR_MEDIA_TYPE, 422, "at least 32 px"),
        (encode_request(ScoreRequest(torch.zeros(1, 3, 32, 32), "RM_7")), TENSOR_MEDIA_TYPE, 404, "RM_0, RM_1, RM_2"),
        (b"--x\r\n\r\n", "multipart/form-data", 400, "boundary"),
    ],
)
def test_bodies_refused(http, body, content_type, status, words):
    answer = http.post("/score", content=body, headers={"content-type": content_type})
    assert answer.status_code == status, answer.text
    assert words in refusal(answer)


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({"rung": "RM_9"}, 404, "unknown rung 'RM_9'; this server has RM_0, RM_1, RM_2"),
        ({"map": "jpeg"}, 422, "map"),
        ({"w_max": "-1"}, 422, "w_max"),
        ({"w_score": "nan"}, 422, "w_score"),
        ({"w_mean": "1e39"}, 422, "w_mean"),
        ({"w_scor": "1"}, 422, "w_scor"),
        ({"top_fraction": "0"}, 422, "top_fraction"),
    ],
)
def test_queries_refused(http, query, status, words):
    answer = http.post("/score", files=upload(PNG), params=query)
    assert answer.status_code == status, answer.text
    assert words in refusal(answer)


def test_other_multipart_fields_are_refused(http):
    assert "got a file 'img'" in refusal(http.post("/score", files=upload(PNG, field="img")))
    answer = http.post("/score", data={"image": "text"}, files=upload(PNG))
    assert "got a text 'image'" in refusal(answer)
    boundary_only = http.post("/score", content=b"--x--\r\n", headers={"content-type": "multipart/form-data; boundary=x"})
    assert boundary_only.status_code == 400 and "at least one file" in refusal(boundary_only)


def test_tensor_options_do_not_come_in_the_query(http):
    body = encode_request(ScoreRequest(torch.zeros(1, 3, 32, 32)))
    answer = http.post("/score", content=body, headers={"content-type": TENSOR_MEDIA_TYPE}, params={"rung": "RM_0"})
    assert answer.status_code == 400 and "metadata" in refusal(answer)


def test_limits():
    with http_of(fake_ladder(), max_body_bytes=20_000, max_pixels=64 * 48, max_images=2) as http:
        for send in ({"content": b"x" * 20_001}, {"content": iter([b"x" * 15_000] * 2)}):
            answer = http.post("/score", headers={"content-type": "image/png"}, **send)
            assert answer.status_code == 413 and "at most 20000 bytes" in refusal(answer)
        answer = http.post("/score", files=upload(b"x" * 30_000))
        assert answer.status_code == 413 and "at most 20000 bytes" in refusal(answer)
        tall = np.zeros((4096, 33, 3), np.uint8)
        answer = http.post("/score", files=upload(encode_png(tall)))
        assert answer.status_code == 413 and refusal(answer) == "image must have at most 3072 pixels, got 33x4096"
        assert (answer.json()["expected"], answer.json()["received"]) == ("at most 3072 pixels", 33 * 4096)
        (one, other) = items(http.post("/score", files=upload(encode_png(tall), PNG)))
        assert "at most 3072 pixels" in one.error and other.error is None
        for count, received in ((3, 3), (5, "more than 4 files")):
            answer = http.post("/score", files=upload(*[SMALL] * count))
            assert answer.status_code == 413 and refusal(answer) == f"a request must have at most 2 images, got {received}"
            assert (answer.json()["field"], answer.json()["expected"]) == ("image", "at most 2 images")
        for images, status in (
            (torch.zeros(3, 3, 32, 32, dtype=torch.uint8), 413),
            (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 413),
        ):
            body = encode_request(ScoreRequest(images))
            answer = http.post("/score", content=body, headers={"content-type": TENSOR_MEDIA_TYPE})
            assert answer.status_code == status and "at most" in refusal(answer)


# --- the other routes ---


def test_model_and_health(http):
    assert http.get("/livez").json() == {"status": "alive"}
    assert http.get("/readyz").json() == {"status": "ready", "rung": "RM_2", "digest": "digest-of-RM_2"}
    reply = parse_reply(ModelReply, http.get("/model").content)
    assert (reply.name, reply.rung, reply.digest, reply.wire) == ("fake", "RM_2", "digest-of-RM_2", 1)
    assert [(rung.name, rung.has_map) for rung in reply.rungs] == [("RM_0", False), ("RM_1", True), ("RM_2", True)]


def test_every_answer_has_its_headers(http):
    for answer in (http.get("/model"), http.get("/nothing"), http.post("/score", content=b"x")):
        assert answer.headers["finpercep-wire"] == "1"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert len(answer.headers["x-request-id"]) == 32
        assert "access-control-allow-origin" not in answer.headers
    assert http.get("/livez", headers={"x-request-id": "run-7.step_3"}).headers["x-request-id"] == "run-7.step_3"
    assert len(http.get("/livez", headers={"x-request-id": "a b"}).headers["x-request-id"]) == 32


def test_metrics_count_what_happened(http):
    http.post("/score", files=upload(PNG, PNG, SMALL))
    http.post("/score", files=upload(PNG), params={"rung": "RM_9"})
    text = http.get("/metrics").text
    for line in (
        'finpercep_items_total{rung="RM_2"} 2.0',
        'finpercep_item_errors_total{kind="unprocessable",rung="RM_2"} 1.0',
        'finpercep_requests_total{route="/score",status="200"} 1.0',
        'finpercep_requests_total{route="/score",status="404"} 1.0',
        'finpercep_batch_images_bucket{le="1.0",rung="RM_2"} 0.0',
        'finpercep_batch_images_bucket{le="2.0",rung="RM_2"} 2.0',
        "finpercep_queue_images 0.0",
        "finpercep_pixels_inside 0.0",
    ):
        assert line in text


def test_the_log_has_a_line_a_request_and_no_image(http, caplog):
    with caplog.at_level("INFO", logger="rm_server.access"):
        http.post("/score", files=upload(PNG, SMALL), headers={"x-request-id": "seen"})
    line = json.loads(caplog.records[-1].message)
    assert {name: line[name] for name in ("id", "method", "path", "status", "rung", "images", "failed")} == {
        "id": "seen", "method": "POST", "path": "/score", "status": 200, "rung": "RM_2", "images": 2, "failed": 1,
    }  # fmt: skip
    assert line["received"] > len(PNG) and line["sent"] > 0


TOKEN, ADMIN = "a-token-of-sixteen", "another-token-of-sixteen"


def test_tokens():
    with http_of(fake_ladder(), token=TOKEN) as http:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": f"Basic {TOKEN}"}):
            answer = http.post("/score", files=upload(PNG), headers=headers)
            assert answer.status_code == 401 and "Bearer TOKEN" in refusal(answer) and TOKEN not in answer.text
        assert http.get("/model").status_code == http.get("/metrics").status_code == 401
        assert http.get("/livez").status_code == http.get("/readyz").status_code == 200
        assert items(http.post("/score", files=upload(PNG), headers={"authorization": f"Bearer {TOKEN}"}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_an_address_that_others_can_reach_needs_a_token(host):
    with pytest.raises(ValidationError, match="set a token"):
        Settings(host=host)
    assert Settings(host=host, token=TOKEN).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_none(host):
    assert Settings(host=host).token is None


# --- rungs that change ---


@pytest.fixture
def root(small_ladder, tmp_path):
    """A model root with the small ladder, and one that is spoilt."""
    shutil.copytree(small_ladder, tmp_path / "round-2")
    shutil.copytree(small_ladder, tmp_path / "spoilt")
    weights = tmp_path / "spoilt" / "RM_2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    (tmp_path / "no-ladder").mkdir()
    return tmp_path


def put(http, rung="RM_2", token=ADMIN, **body):
    return http.put(f"/rungs/{rung}", json=body, headers={"authorization": f"Bearer {token}"} if token else {})


def test_a_rung_takes_anothers_place(root, small_ladder):
    expected = load_predictor(small_ladder, "RM_2")
    with http_of(fake_ladder(), model_root=root, admin_token=ADMIN) as http:
        reply = parse_reply(ModelReply, put(http, source="round-2", digest=expected.digest).content)
        assert (reply.digest, reply.rungs[-1].takes_lr) == (expected.digest, True)
        answer = http.post("/score", files=upload(PNG))
        assert answer.json()["model"] == {"name": "small", "rung": "RM_2", "digest": expected.digest}
        assert items(answer)[0].score == pytest.approx(expected.assess(PHOTO).score, abs=1e-5)
        low = photo(12, 16, seed=1)
        (with_lr,) = items(http.post("/score", files=[*upload(PNG), *upload(encode_png(low), field="lr")]))
        assert with_lr.score == pytest.approx(expected.assess(PHOTO, lr=low).score, abs=1e-5)
        tensors = score_tensors(http, ScoreRequest((as_tensor(PHOTO),), lr=(as_tensor(low),)))
        assert float(tensors.score) == pytest.approx(with_lr.score, abs=1e-6)
        assert http.get("/readyz").json()["digest"] == expected.digest


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"token": None}, 401, "Bearer TOKEN"),
        ({"token": TOKEN}, 401, "Bearer TOKEN"),
        ({"source": "../ladder"}, 404, "the model root has no ladder or rung '../ladder'; it has no-ladder/, round-2, spoilt"),
        ({"source": "no-ladder"}, 404, "the model root has no ladder"),
        ({"source": "spoilt"}, 409, "spoilt: "),
        ({"rung": "RM_7"}, 409, "has the rungs RM_0, RM_1, RM_2, got 'RM_7'"),
        ({"digest": "sha256:other"}, 409, "not the one that was asked for"),
        ({"path": "/etc"}, 422, "path"),
    ],
)
def test_a_rung_that_may_not_take_anothers_place(root, change, status, words):
    with http_of(fake_ladder(), model_root=root, admin_token=ADMIN) as http:
        answer = put(http, **{"source": "round-2", **change})
        assert answer.status_code == status and words in refusal(answer)
        assert parse_reply(ModelReply, http.get("/model").content).digest == "digest-of-RM_2"


def test_a_rung_whose_canary_dies_is_not_put_in_place(root, monkeypatch):
    monkeypatch.setattr(canary, "expected_numbers", lambda predictor: (0.123, 0.456))
    with http_of(fake_ladder(), model_root=root, admin_token=ADMIN) as http:
        answer = put(http, source="round-2")
        assert answer.status_code == 409 and "the canary's score is" in refusal(answer)
        assert parse_reply(ModelReply, http.get("/model").content).digest == "digest-of-RM_2"


def test_a_root_that_went_away_is_a_conflict_and_not_a_failure(root):
    with http_of(fake_ladder(), model_root=root, admin_token=ADMIN) as http:
        shutil.rmtree(root)
        answer = put(http, source="round-2")
    assert answer.status_code == 409 and "No such file or directory" in refusal(answer)


def test_without_a_root_or_a_token_no_rung_changes(root):
    with http_of(fake_ladder(), model_root=root) as http:
        assert put(http, source="round-2").status_code == 401
    with http_of(fake_ladder(), admin_token=ADMIN) as http:
        assert "--model-root" in refusal(put(http, source="round-2"))


def test_a_model_that_went_wrong_is_not_ready():
    def spoil(batch):
        return type(batch)(batch.score * 0.5, batch.map)

    with http_of({"RM_1": FakePredictor(spoil=spoil)}) as http:
        answer = http.get("/readyz")
        assert answer.status_code == 503 and "the canary's score is" in refusal(answer)
        assert http.get("/livez").status_code == 200


def test_unknown_route_and_method(http):
    answer = http.get("/nothing")
    assert refusal(answer) == "Not Found: GET '/nothing'; GET /docs describes what there is"
    assert answer.json()["received"] == "/nothing"
    wrong = http.get("/score")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST" and "GET '/score'" in refusal(wrong)


def test_a_parameter_that_is_not_known_is_told_those_that_are(http):
    answer = http.post("/score", files=upload(PNG), params={"maps": "png"})
    problem = answer.json()
    assert answer.status_code == 422 and (problem["field"], problem["received"]) == ("query.maps", "maps")
    assert problem["expected"].startswith("one of rung, map, map_size, ") and problem["expected"] in refusal(answer)


def test_openapi_document_names_the_statuses(http):
    paths = http.get("/openapi.json").json()["paths"]
    every = {"400", "401", "404", "408", "413", "415", "422", "500", "503"}
    assert every | {"200"} == set(paths["/score"]["post"]["responses"])
    assert every | {"200", "409"} == set(paths["/rungs/{name}"]["put"]["responses"])


def test_openapi_document_names_the_bodies(http):
    score = http.get("/openapi.json").json()["paths"]["/score"]["post"]
    assert set(score["requestBody"]["content"]) == {"multipart/form-data", "image/*", "application/json", TENSOR_MEDIA_TYPE}
    parameters = {one["name"] for one in score["parameters"]}
    assert parameters == {"rung", "map", "map_size", "regions", "region_threshold", "region_min_area"} | {
        "w_score",
        "w_max",
        "w_mean",
        "top_fraction",
    }


def test_settings_read_the_environment(monkeypatch):
    monkeypatch.setenv("FINPERCEP_PORT", "1234")
    assert Settings().port == 1234
    assert Settings(port=0).port == 0
