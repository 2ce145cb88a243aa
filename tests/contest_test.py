import collections
import concurrent.futures
import io
import json
import socket

import numpy as np
import pytest
import requests
from PIL import Image, JpegImagePlugin

from simgan_jax import challenge, contest, glyphs
from simgan_jax.challenge import ChallengeError, Solution
from simgan_jax.config import CaptchaConfig, ConfigError
from simgan_jax.contest import Contest, ContestConfig


def decoded(captcha):
    return np.asarray(Image.open(io.BytesIO(captcha.jpeg)).convert("RGB")).astype(int)


def names_of(body):
    return [image["name"] for image in json.loads(body)["images"]]


def test_a_captcha_follows_from_user_seed_and_index():
    first = contest.draw("alice", 7, seed=3)
    contest._scene.cache_clear()
    contest._glyphs.cache_clear()
    assert contest.draw("alice", 7, seed=3) == first
    others = [contest.draw("bob", 7, seed=3), contest.draw("alice", 8, seed=3), contest.draw("alice", 7, seed=4)]
    for other in others:
        assert other.name != first.name
        assert other.answer != first.answer
        assert other.jpeg != first.jpeg


def test_files_are_as_the_original_site_served_them():
    image = Image.open(io.BytesIO(contest.draw("alice", 0).jpeg))
    assert isinstance(image, JpegImagePlugin.JpegImageFile)
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (100, 50))
    # ITU-T T.81, table K.1, is quality 50; chroma at half the resolution both ways.
    assert image.quantization[0][:8] == [16, 11, 10, 16, 24, 40, 51, 61]
    assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]


def test_a_user_has_stripes_and_lines_of_their_own():
    scenes = {user: np.median([decoded(contest.draw(user, i)) for i in range(60)], axis=0) for user in ("alice", "bob")}
    for scene in scenes.values():
        # Above the lines and away from the seams, a stripe has one colour and its neighbour another.
        stripes = scene[:3, [6, 12, 18, 31, 37, 43, 56, 62, 68, 81, 87, 93]].reshape(3, 4, 3, 3)
        means = stripes.mean(axis=(0, 2))
        assert np.abs(stripes - means[None, :, None]).max() < 12
        assert min(np.abs(a - b).max() for a, b in zip(means, means[1:], strict=False)) > 20
        bright = scene.min(axis=-1) > 100
        assert 100 < bright.sum() < 700
    assert np.abs(scenes["alice"] - scenes["bob"]).mean() > 20


def test_glyphs_are_white_and_differ_from_captcha_to_captcha():
    images = np.stack([decoded(contest.draw("alice", i)) for i in range(100)])
    scene = np.median(images, axis=0)
    ink = (images.min(axis=-1) > 180) & (scene.min(axis=-1) < 100)
    share = ink.mean(axis=(1, 2))
    assert 0.03 < share.min() < share.max() < 0.2
    columns = ink.any(axis=1).mean(axis=0)
    # All four slots are written in, and a glyph leaves the image at the right edge now and then.
    assert (columns[[16, 40, 63, 87]] > 0.4).all()
    assert 0 < columns[-1] < 0.3


def test_answers_are_uniform_over_alphabet_and_slots():
    answers = [contest._answer("alice", i, seed=0, captcha=CaptchaConfig()) for i in range(3000)]
    for slot in range(4):
        counts = collections.Counter(answer[slot] for answer in answers)
        assert len(counts) == 36
        # 3,000 / 36 = 83 with a standard deviation of 9.
        assert 83 - 45 < min(counts.values()) <= max(counts.values()) < 83 + 45


def test_other_captchas_by_config():
    config = ContestConfig(captcha=CaptchaConfig(height=24, width=30, length=1, alphabet="xy"), quality=90)
    captcha = contest.draw("alice", 0, config=config)
    assert decoded(captcha).shape == (24, 30, 3)
    assert captcha.answer in ("x", "y")


def test_the_font_is_not_one_of_the_simulators():
    assert "font_rhd" not in {package for package, _ in glyphs.FACES.values()}
    path = contest._face("", 20).path
    assert isinstance(path, str)
    assert "RedHatDisplay" in path


def test_names_reveal_nothing_but_to_the_server():
    game = Contest("alice", seed=5)
    captchas = [contest.draw("alice", i, seed=5) for i in range(300)]
    assert len({captcha.name for captcha in captchas}) == 300
    for captcha in captchas:
        assert len(captcha.name) == 32
        assert set(captcha.name) <= set("0123456789abcdef")
        assert game.answer(captcha.name) == captcha.answer
        assert Contest("alice", seed=6).answer(captcha.name) is None
    # Two halves of hex digits: neither counts up, and each digit of each is about as frequent as any other.
    digits = np.array([[int(digit, 16) for digit in captcha.name] for captcha in captchas])
    assert np.abs(digits.mean(axis=0) - 7.5).max() < 1.4
    name = captchas[0].name
    for forged in (name[:-1] + ("0" if name[-1] != "0" else "1"), name.upper() + "0", "", "g" * 32, "0" * 32):
        assert game.answer(forged) is None


def test_the_answer_is_not_in_what_is_served():
    captcha = contest.draw("alice", 3)
    body = Contest("alice", batch_size=4).batch(0)
    assert set(json.loads(body)["images"][3]) == {"name", "jpg_base64"}
    assert captcha.answer.encode() not in captcha.jpeg
    assert captcha.answer not in captcha.name


def solutions(game, right, wrong):
    captchas = [contest.draw(game.user, i, seed=game.seed) for i in range(right + wrong)]
    return [Solution(c.name, c.answer if i < right else "?") for i, c in enumerate(captchas)]


def test_score():
    game = Contest("alice", size=7)
    assert game.needed == 5
    assert game.score(solutions(game, 4, 3)) == {
        "total": 7,
        "correct": 4,
        "needed": 5,
        "exact": 4 / 7,
        "passed": False,
    }
    assert game.score(solutions(game, 5, 2))["passed"] is True
    assert game.score(solutions(game, 4, 0)) == {"total": 4, "correct": 4, "needed": 5, "exact": 1.0, "passed": False}
    assert Contest("alice").needed == 10_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [], "0 solutions: post 1 to 7"),
        (lambda rows: rows + rows, "14 solutions: post 1 to 7"),
        (lambda rows: rows[:3] + rows[:1], "twice: answer each captcha once"),
        (lambda rows: [Solution("f" * 32, "abcd")], "no captcha of this contest"),
    ],
)
def test_scores_that_are_refused(change, message):
    game = Contest("alice", size=7)
    with pytest.raises(ChallengeError, match=message):
        game.score(change(solutions(game, 7, 0)))


@pytest.mark.parametrize("user", ["", "a/b", "..", "a b", "a\n", "x" * 65, "ä"])
def test_bad_users(user):
    with pytest.raises(ChallengeError, match="use 1 to 64 letters"):
        Contest(user)


def test_bad_sizes():
    with pytest.raises(ChallengeError, match="must be above 0"):
        Contest("alice", size=0)
    with pytest.raises(ChallengeError, match="must be above 0"):
        Contest("alice", batch_size=0)


@pytest.mark.parametrize(
    "bad", [{"size": 0.0}, {"stripes": 0}, {"quality": 101}, {"rotation": -1}, {"lines": (3, 2)}, {"jitter_x": -0.1}]
)
def test_bad_config(bad):
    with pytest.raises(ConfigError, match=f"contest.{next(iter(bad))}="):
        ContestConfig(**bad)


def test_bad_fonts(tmp_path):
    (tmp_path / "font.ttf").write_bytes(b"no font")
    for file in (tmp_path / "font.ttf", tmp_path / "gone.ttf", tmp_path):
        with pytest.raises(ChallengeError, match="not a font file") as caught:
            Contest("alice", config=ContestConfig(font=str(file)))
        assert str(file) in str(caught.value)


@pytest.fixture(scope="module")
def server():
    with contest.serve(Contest("alice", size=10, batch_size=5)) as url:
        yield url


def call(method, url, **options):
    with requests.Session() as session:
        session.trust_env = False
        with session.request(method, url, timeout=30, **options) as response:
            return response.status_code, response.json()


def test_serves_on_loopback_alone(server):
    assert server.startswith("http://127.0.0.1:")
    assert server.endswith("/u/alice")


def test_gets_are_the_next_batch_or_the_one_asked_for():
    game = Contest("alice", size=10, batch_size=5)
    with contest.serve(Contest("alice", size=10, batch_size=5)) as url:
        first = [call("GET", f"{url}/challenge")[1] for _ in range(2)]
        again = [call("GET", f"{url}/challenge?batch={i}")[1] for i in (1, 0, 7)]
    assert first == [json.loads(game.batch(0)), json.loads(game.batch(1))]
    assert again == [first[1], first[0], json.loads(game.batch(7))]
    records = challenge.decode_batch(game.batch(0), "batch", height=50, width=100)
    assert records.gray.shape == (5, 50, 100)
    assert records.tables is not None


def test_simultaneous_gets_get_different_batches():
    with contest.serve(Contest("alice", batch_size=2)) as url, concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: call("GET", f"{url}/challenge"), range(16)))
    assert {status for status, _ in answers} == {200}
    assert len({image["name"] for _, body in answers for image in body["images"]}) == 32


def test_a_restarted_contest_scores_what_it_served_before():
    with contest.serve(Contest("alice", size=4, batch_size=4)) as url:
        _, body = call("GET", f"{url}/challenge")
    answers = {captcha.name: captcha.answer for captcha in (contest.draw("alice", i) for i in range(4))}
    rows = [{"name": image["name"], "solution": answers[image["name"]]} for image in body["images"]]
    with contest.serve(Contest("alice", size=4, batch_size=4)) as url:
        status, result = call("POST", f"{url}/solution", json={"solutions": rows})
    assert status == 200
    assert result == {"total": 4, "correct": 4, "needed": 3, "exact": 1.0, "passed": True}


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "words"),
    [
        ("GET", "/challenge?batch=x", {}, 400, "batch"),
        ("GET", "/challenge?batch=-1", {}, 400, "batch"),
        ("GET", "/challenge?batch=", {}, 400, "batch"),
        ("GET", "/challenge?batch=1234567", {}, 400, "batch"),
        ("GET", "/challenge?page=1", {}, 400, "batch"),
        ("GET", "/solution", {}, 404, "no such page"),
        ("GET", "/answers", {}, 404, "no such page"),
        ("GET", "/../bob/challenge", {}, 404, "no such page"),
        ("POST", "/challenge", {"data": b"{}"}, 404, "no such page"),
        ("PUT", "/solution", {"data": b""}, 501, "PUT"),
        ("POST", "/solution", {}, 400, "malformed|truncated"),
        ("POST", "/solution", {"data": (part for part in [b"{}"])}, 400, "Content-Length"),
        ("POST", "/solution", {"data": b"no json"}, 400, "malformed"),
        ("POST", "/solution", {"json": {"solutions": [{"name": "a"}]}}, 400, "solution"),
        ("POST", "/solution", {"json": {"solutions": [], "user": "bob"}}, 400, "user"),
        ("POST", "/solution", {"json": {"solutions": []}}, 400, "post 1 to 10"),
        ("POST", "/solution", {"json": {"solutions": [{"name": "a", "solution": "b"}]}}, 400, "no captcha of this"),
        ("POST", "/solution", {"data": bytes(3_000_000)}, 413, "post at most"),
    ],
)
def test_refusals(server, method, path, options, status, words):
    got, body = call(method, server + path, **options)
    assert got == status
    assert set(body) == {"error"}
    assert any(word in body["error"] for word in words.split("|"))


def test_nonsense_on_the_wire_is_answered(server):
    port = int(server.split(":")[2].split("/")[0])
    for line in (
        b"GARBAGE\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as stream:
                answer = stream.read()
        assert b'{"error":' in answer
    assert call("GET", f"{server}/challenge?batch=0")[0] == 200


def test_a_taken_port(server):
    port = int(server.split(":")[2].split("/")[0])
    for taken in (port, 70_000):
        with (
            pytest.raises(ChallengeError, match=f"port {taken} on 127.0.0.1 cannot be had"),
            contest.serve(Contest("bob"), port=taken),
        ):
            pass
