"""The embedded contest: draws captchas, serves them on loopback, scores answers (io).

It stands for the outside world of a site that is gone, so it shares no drawing code and no font with the
synthesizer. Captchas follow from (user, seed, index) alone: a contest started again is the same contest.
"""

import contextlib
import dataclasses
import functools
import hashlib
import hmac
import http.server
import importlib.resources
import io
import itertools
import logging
import random
import re
import socketserver
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Sequence

import msgspec
from PIL import Image, ImageDraw, ImageFont

from simgan_jax import challenge
from simgan_jax.challenge import ChallengeError, Solution, Solutions
from simgan_jax.config import CaptchaConfig, ConfigError

HOST = "127.0.0.1"
USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
PASS_SHARE = (2, 3)
BODY_BYTES, BODY_BYTES_EACH, DRAIN_BYTES = 1 << 16, 256, 1 << 26
LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ContestConfig:
    """The look. `x` and widths in shares of the image width, `y` and sizes in shares of its height, degrees.

    font: a font file, the contest's own face if empty; slots: centres of the first and the last glyph;
    lines: fewest and most; line_left, line_right: where lines start and end; quality: of the JPEG files.
    """

    captcha: CaptchaConfig = CaptchaConfig()
    font: str = ""
    size: float = 0.5
    rotation: int = 25
    slots: tuple[float, float] = (0.16, 0.87)
    jitter_x: float = 0.085
    middle: float = 0.56
    jitter_y: float = 0.2
    stripes: int = 4
    saturation: float = 1.0
    brightness: float = 0.71
    lines: tuple[int, int] = (4, 5)
    line_left: tuple[float, float] = (0.06, 0.24)
    line_right: tuple[float, float] = (0.76, 0.94)
    line_y: tuple[float, float] = (0.1, 0.98)
    quality: int = 50

    def __post_init__(self) -> None:
        shares = dict.fromkeys(("middle", "jitter_x", "jitter_y", "saturation", "brightness"), (0.0, 1.0))
        bounds = {"size": (0.05, 1.0), "rotation": (0, 180), "stripes": (1, self.captcha.width), "quality": (1, 95)}
        for field, (low, high) in {**shares, **bounds}.items():
            if not low <= getattr(self, field) <= high:
                raise ConfigError(f"contest.{field}={getattr(self, field)!r}: must lie between {low} and {high}")
        if not 0 <= self.lines[0] <= self.lines[1]:
            raise ConfigError(f"contest.lines={self.lines!r}: give the fewest and the most lines")


@dataclasses.dataclass(frozen=True)
class Captcha:
    """A drawn captcha; `jpeg` is the file as served."""

    name: str
    answer: str
    jpeg: bytes


class _Draws:
    """Uniform numbers of a text; only `random()` is used, whose stream Python keeps from version to version."""

    def __init__(self, *parts: object) -> None:
        digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
        self._random = random.Random(int.from_bytes(digest, "big"))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random.random()

    def integer(self, low: int, high: int) -> int:
        return low + int((high - low + 1) * self._random.random())


def draw(user: str, index: int, *, seed: int = 0, config: ContestConfig = ContestConfig()) -> Captcha:
    """Captcha number `index` of a user's contest.

    Raises:
      ChallengeError: the font is no font, or draws nothing for a character.
    """
    captcha = config.captcha
    answer = _answer(user, index, seed=seed, captcha=captcha)
    draws = _Draws("layout", seed, user, index)
    image = _scene(user, config).copy()
    glyphs = _glyphs(config)
    first, last = config.slots
    for slot, character in enumerate(answer):
        share = slot / (captcha.length - 1) if captcha.length > 1 else 0.5
        x = first + share * (last - first) + draws.between(-config.jitter_x, config.jitter_x)
        y = config.middle + draws.between(-config.jitter_y, config.jitter_y)
        glyph = glyphs[character, draws.integer(-config.rotation, config.rotation)]
        corner = round(x * captcha.width - glyph.width / 2), round(y * captcha.height - glyph.height / 2)
        image.paste((255, 255, 255), (*corner, corner[0] + glyph.width, corner[1] + glyph.height), glyph)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=config.quality)
    return Captcha(_name(_secret(user, seed), index), answer, out.getvalue())


def _answer(user: str, index: int, *, seed: int, captcha: CaptchaConfig) -> str:
    draws = _Draws("answer", seed, user, index)
    return "".join(captcha.alphabet[draws.integer(0, len(captcha.alphabet) - 1)] for _ in range(captcha.length))


@functools.lru_cache(maxsize=16)
def _scene(user: str, config: ContestConfig) -> Image.Image:
    """Stripes and lines of a user."""
    captcha = config.captcha
    draws = _Draws("scene", user)
    scene = Image.new("RGB", (captcha.width, captcha.height))
    pen = ImageDraw.Draw(scene)
    for i in range(config.stripes):
        left, right = (captcha.width * edge // config.stripes for edge in (i, i + 1))
        hue = draws.integer(0, 359)
        colour = f"hsv({hue},{100 * config.saturation:.0f}%,{100 * config.brightness:.0f}%)"
        pen.rectangle((left, 0, right - 1, captcha.height), fill=colour)
    for _ in range(draws.integer(*config.lines)):
        ends = [
            (round(draws.between(*xs) * captcha.width), round(draws.between(*config.line_y) * captcha.height))
            for xs in (config.line_left, config.line_right)
        ]
        pen.line(ends, fill=(255, 255, 255), width=1)
    return scene


@functools.lru_cache(maxsize=4)
def _glyphs(config: ContestConfig) -> dict[tuple[str, int], Image.Image]:
    """Each character at each whole degree, drawn once: most of the time of a captcha would go there."""
    size = max(1, round(config.size * config.captcha.height))
    face, cell = _face(config.font, size), 2 * size
    glyphs = {}
    for character in config.captcha.alphabet:
        upright = Image.new("L", (cell, cell))
        ImageDraw.Draw(upright).text((cell / 2, cell / 2), character, fill=255, font=face, anchor="mm")
        if upright.getbbox() is None:
            raise ChallengeError(f"font {config.font!r}: draws nothing for {character!r}: use another font")
        for degrees in range(-config.rotation, config.rotation + 1):
            glyphs[character, degrees] = upright.rotate(degrees, Image.Resampling.BILINEAR)
    return glyphs


def _face(font: str, size: int) -> ImageFont.FreeTypeFont:
    try:
        file = font or str(importlib.resources.files("font_rhd") / "files" / "RedHatDisplay-Black.ttf")
        return ImageFont.truetype(file, size)
    except ModuleNotFoundError as error:
        raise ChallengeError("the contest's font package font-rhd is not installed: install it") from error
    except OSError as error:
        raise ChallengeError(f"font {file}: not a font file ({error}): give a TrueType or OpenType file") from error


def _secret(user: str, seed: int) -> bytes:
    return hashlib.sha256(f"names|{seed}|{user}".encode()).digest()


def _name(secret: bytes, index: int) -> str:
    """32 hex digits that only the server can read back: a tag of the index, and the index under the tag's mask."""
    number = index.to_bytes(8, "big")
    tag = hmac.digest(secret, b"tag" + number, "sha256")[:8]
    mask = hmac.digest(secret, b"mask" + tag, "sha256")
    return (tag + bytes(a ^ b for a, b in zip(number, mask, strict=False))).hex()


def _index(secret: bytes, name: str) -> int | None:
    if not re.fullmatch("[0-9a-f]{32}", name):
        return None
    tag, masked = bytes.fromhex(name)[:8], bytes.fromhex(name)[8:]
    mask = hmac.digest(secret, b"mask" + tag, "sha256")
    index = int.from_bytes(bytes(a ^ b for a, b in zip(masked, mask, strict=False)), "big")
    return index if _name(secret, index) == name else None


class Contest:
    """A user's contest: serves batches by number, scores answers. Safe to use from several threads.

    Nothing is stored: an answer is found again from its captcha's name, which only the server can read.

    Args:
      user: letters, digits, `_.-`; decides stripes and lines.
      seed: decides captchas and names.
      size: most answers in one submission; two thirds of it, rounded up, must be right to pass.
      batch_size: images in a batch.

    Raises:
      ChallengeError: a user name that cannot stand in an address, sizes below 1, a font that is no font.
    """

    def __init__(
        self,
        user: str,
        *,
        seed: int = 0,
        size: int = 15_000,
        batch_size: int = 1000,
        config: ContestConfig = ContestConfig(),
    ) -> None:
        if not USER.fullmatch(user):
            raise ChallengeError(f"user {user!r}: use 1 to 64 letters, digits, _ . -")
        if size < 1 or batch_size < 1:
            raise ChallengeError(f"contest of {size} captchas in batches of {batch_size}: both must be above 0")
        self.user, self.seed, self.size, self.batch_size, self.config = user, seed, size, batch_size, config
        self.needed = -(-PASS_SHARE[0] * size // PASS_SHARE[1])
        self._secret = _secret(user, seed)
        self._next = itertools.count()
        self._lock = threading.Lock()
        _glyphs(config)

    def batch(self, number: int | None = None) -> bytes:
        """Contest file of batch `number`; without one, of the next number that was not given out that way."""
        if number is None:
            with self._lock:
                number = next(self._next)
        indices = range(number * self.batch_size, (number + 1) * self.batch_size)
        captchas = (draw(self.user, index, seed=self.seed, config=self.config) for index in indices)
        return challenge.encode_batch((captcha.name, captcha.jpeg) for captcha in captchas)

    def answer(self, name: str) -> str | None:
        """The right answer of a captcha, None if it is not of this contest. Never served."""
        index = _index(self._secret, name)
        return None if index is None else _answer(self.user, index, seed=self.seed, captcha=self.config.captcha)

    def score(self, solutions: Sequence[Solution]) -> dict[str, float | bool]:
        """Counts right answers: `total, correct, needed`, `exact` (their share), `passed`.

        Raises:
          ChallengeError: none, more than `size`, a name twice or of no captcha of this contest.
        """
        if not 0 < len(solutions) <= self.size:
            raise ChallengeError(f"{len(solutions)} solutions: post 1 to {self.size}")
        seen: set[str] = set()
        correct = 0
        for solution in solutions:
            answer = self.answer(solution.name)
            if answer is None:
                raise ChallengeError(
                    f"solution {solution.name[:64]!r}: no captcha of this contest: use names as served"
                )
            if solution.name in seen:
                raise ChallengeError(f"solution {solution.name!r} twice: answer each captcha once")
            seen.add(solution.name)
            correct += solution.solution == answer
        return {
            "total": len(solutions),
            "correct": correct,
            "needed": self.needed,
            "exact": correct / len(solutions),
            "passed": correct >= self.needed,
        }


class _RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: http.HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, contest: Contest) -> None:
        self.contest = contest
        super().__init__((HOST, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service for this host, which takes seconds where there is none.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        quiet = isinstance(sys.exception(), ConnectionError)
        LOG.log(logging.DEBUG if quiet else logging.ERROR, "connection of %s broke", client_address, exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: _Server

    def do_GET(self) -> None:
        self._reply(self._challenge)

    def do_POST(self) -> None:
        self._reply(self._solution)

    def _reply(self, work: Callable[[], bytes]) -> None:
        try:
            self._send(http.HTTPStatus.OK, work())
        except _RefusedError as refusal:
            self.send_error(refusal.status, str(refusal))

    def _challenge(self) -> bytes:
        contest = self.server.contest
        query = urllib.parse.parse_qs(self._route("challenge"), keep_blank_values=True)
        if not query:
            return contest.batch()
        number = query.get("batch", [""])[0]
        if set(query) != {"batch"} or not re.fullmatch("[0-9]{1,6}", number):
            raise _RefusedError(http.HTTPStatus.BAD_REQUEST, "give ?batch= a number from 0 to 999999, or nothing")
        return contest.batch(int(number))

    def _solution(self) -> bytes:
        contest = self.server.contest
        body = self._body(BODY_BYTES + contest.size * BODY_BYTES_EACH)
        self._route("solution")
        try:
            return msgspec.json.encode(contest.score(msgspec.json.decode(body, type=Solutions).solutions))
        except (msgspec.MsgspecError, ChallengeError) as error:
            raise _RefusedError(http.HTTPStatus.BAD_REQUEST, str(error)) from error

    def _route(self, page: str) -> str:
        """The query of a request for a page of this contest."""
        path, _, query = self.path.partition("?")
        right = f"/u/{self.server.contest.user}/{page}"
        if path != right:
            raise _RefusedError(http.HTTPStatus.NOT_FOUND, f"no such page: ask for {right}")
        return query

    def _body(self, limit: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,18}", length):
            raise _RefusedError(http.HTTPStatus.BAD_REQUEST, "send a body with its Content-Length")
        if int(length) > limit:
            self._drain(min(int(length), DRAIN_BYTES))
            raise _RefusedError(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"post at most {limit} bytes")
        return self.rfile.read(int(length))

    def _drain(self, length: int) -> None:
        """Reads a refused body away: a connection closed on unread bytes can lose the answer that went before."""
        while length > 0 and (read := len(self.rfile.read(min(length, 1 << 16)))):
            length -= read

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status != http.HTTPStatus.OK:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers with `{"error": ...}`, also where the base class refuses a request by itself."""
        self._send(code, msgspec.json.encode({"error": message or http.HTTPStatus(code).phrase}))

    def log_message(self, format: str, *args: object) -> None:
        LOG.debug(format, *args)


@contextlib.contextmanager
def serve(contest: Contest, *, port: int = 0) -> Iterator[str]:
    """Serves a contest on loopback while the context lasts; gives its address, `http://127.0.0.1:PORT/u/USER`.

    `GET /challenge[?batch=N]` answers with a contest file, `POST /solution` with what `Contest.score` returns,
    anything refused with `{"error": ...}` and 400, 404 or 413.

    Args:
      port: 0 for any free one.

    Raises:
      ChallengeError: the port cannot be had.
    """
    try:
        server = _Server(port, contest)
    except (OSError, OverflowError) as error:
        raise ChallengeError(f"port {port} on {HOST} cannot be had ({error}): choose another") from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/u/{contest.user}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
