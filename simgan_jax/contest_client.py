"""Downloads contest batches and posts answers over HTTP (io)."""

import concurrent.futures
import os
import pathlib
import urllib.parse
from collections.abc import Mapping
from typing import Any

import msgspec
import requests
import tqdm
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from simgan_jax import atomic, challenge
from simgan_jax.challenge import AnyPath, ChallengeError, Solutions

MAX_SOLUTIONS = 15_000
RETRIED = (429, 500, 502, 503, 504)
CONNECTS = 2
CHUNK = 1 << 16


def download(
    url: str,
    count: int,
    folder: AnyPath,
    *,
    workers: int = 4,
    retries: int = 5,
    backoff: float = 0.5,
    timeout: tuple[float, float] = (5.0, 60.0),
    progress: bool = True,
    height: int | None = None,
    width: int | None = None,
) -> list[pathlib.Path]:
    """Files `challenge-0` ... of a contest in `folder`; complete ones that are there already are kept.

    Every batch is checked as `challenge.read` does before its file appears, and it appears whole.

    Args:
      url: of the user's contest, `http://HOST/u/USER`; `GET {url}/challenge?batch=I` is asked.
      count: number of batches.
      workers: batches under way at a time.
      retries: tries after the first, for a broken connection and for statuses 429 and 5xx; 2 of them where nothing
        listens.
      backoff: seconds before the second retry, doubled for each further one, with jitter.
      timeout: seconds to connect, and between two pieces of an answer.
      height, width: as for `challenge.read`.

    Raises:
      ChallengeError: unreachable server, refusal, or a batch that is not as it should be.
      atomic.WriteError: the disk refused.
    """
    address = _address(url, "challenge")
    if count < 1 or workers < 1:
        raise ChallengeError(f"{count} batches by {workers} workers: both must be above 0")
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ChallengeError(f"{folder}: cannot be made ({error.strerror}): give another folder") from error
    files = [folder / f"challenge-{i}" for i in range(count)]
    seen: dict[str, str] = {}
    missing = [i for i, file in enumerate(files) if not _complete(file, seen, height=height, width=width)]
    retry = _retry(retries, backoff)

    with (
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
        tqdm.tqdm(total=count, initial=count - len(missing), unit="batch", disable=not progress) as bar,
    ):
        try:
            pending: dict[concurrent.futures.Future[bytes], int] = {}
            while missing or pending:
                # A few at a time: batches that wait to be checked are held in memory.
                while missing and len(pending) < 2 * workers:
                    number = missing.pop(0)
                    pending[pool.submit(_fetch, address, number, retry=retry, timeout=timeout)] = number
                done, _ = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    number = pending.pop(future)
                    data = future.result()
                    source = f"{address}?batch={number}"
                    _note(challenge.decode_batch(data, source, height=height, width=width).names, source, seen)
                    atomic.write_bytes(files[number], data)
                    bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return files


def submit(
    url: str,
    solutions: AnyPath | Mapping[str, str],
    *,
    limit: int = MAX_SOLUTIONS,
    retries: int = 5,
    backoff: float = 0.5,
    timeout: tuple[float, float] = (5.0, 60.0),
) -> dict[str, Any]:
    """Posts answers to `{url}/solution`; returns what the server says.

    Args:
      url: of the user's contest, `http://HOST/u/USER`.
      solutions: a solutions file, or answers by name.
      limit: most answers that the contest takes at once.
      retries, backoff, timeout: as for `download`; only a connection that was never made is tried again.

    Raises:
      ChallengeError: no or too many answers, unreachable server, refusal, an answer that is no JSON object.
    """
    address = _address(url, "solution")
    if isinstance(solutions, Mapping):
        rows = Solutions([challenge.Solution(name, text) for name, text in solutions.items()])
    else:
        rows = challenge.read_solutions(solutions)
    if not 0 < len(rows.solutions) <= limit:
        raise ChallengeError(f"{len(rows.solutions)} solutions: a contest takes 1 to {limit} at once: post a part")
    connects = min(retries, CONNECTS)
    retry = Retry(total=connects, connect=connects, read=0, status=0, other=0, backoff_factor=backoff)
    body, headers = msgspec.json.encode(rows), {"Content-Type": "application/json"}
    try:
        with _session(retry) as session, session.post(address, data=body, headers=headers, timeout=timeout) as response:
            _check(response)
            answer = response.json()
    except requests.JSONDecodeError as error:
        raise ChallengeError(f"{address}: the answer is no JSON: check that this is a contest's address") from error
    except requests.RequestException as error:
        raise _unreachable(address, error) from error
    if not isinstance(answer, dict):
        raise ChallengeError(f"{address}: the answer is no JSON object: check that this is a contest's address")
    return answer


def _address(url: str, page: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
    except ValueError:
        good = False
    if not good:
        raise ChallengeError(f"url {url!r}: give the address of a user's contest, http://HOST/u/USER")
    return f"{url.rstrip('/')}/{page}"


def _complete(file: pathlib.Path, seen: dict[str, str], *, height: int | None, width: int | None) -> bool:
    """Whether a batch is there already; one that is cut or of another kind is fetched again."""
    if not os.path.lexists(file):
        return False
    try:
        names = challenge.read(file, height=height, width=width).names
    except ChallengeError:
        return False
    _note(names, str(file), seen)
    return True


def _note(names: tuple[str, ...], source: str, seen: dict[str, str]) -> None:
    for name in names:
        if name in seen:
            raise ChallengeError(
                f"{source}: name {name!r} came before, in {seen[name]}: download into an empty folder, or fewer batches"
            )
        seen[name] = source


def _retry(retries: int, backoff: float) -> Retry:
    return Retry(
        total=retries,
        connect=min(retries, CONNECTS),
        backoff_factor=backoff,
        backoff_jitter=backoff,
        status_forcelist=RETRIED,
        allowed_methods={"GET"},
        raise_on_status=False,
    )


def _session(retry: Retry) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", HTTPAdapter(max_retries=retry))
    session.mount("https://", HTTPAdapter(max_retries=retry))
    return session


def _fetch(address: str, number: int, *, retry: Retry, timeout: tuple[float, float]) -> bytes:
    """Bytes of one batch; an answer that breaks off midway is asked for again, as often as `retry` says."""
    left = int(retry.total or 0)
    while True:
        try:
            with (
                _session(retry) as session,
                session.get(address, params={"batch": number}, timeout=timeout, stream=True) as response,
            ):
                _check(response)
                return _body(address, response)
        except requests.RequestException as error:
            if not isinstance(error, requests.exceptions.ChunkedEncodingError) or left == 0:
                raise _unreachable(address, error) from error
            left -= 1


def _body(address: str, response: requests.Response) -> bytes:
    data = bytearray()
    for chunk in response.iter_content(CHUNK):
        data += chunk
        if len(data) > challenge.MAX_FILE_BYTES:
            raise ChallengeError(f"{address}: answer above {challenge.MAX_FILE_BYTES >> 20} MiB: check the address")
    return bytes(data)


def _check(response: requests.Response) -> None:
    """Raises for a refusal, with the server's own words where it gave any."""
    if response.status_code == 200:
        return
    try:
        words = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        words = response.reason
    raise ChallengeError(f"{response.url}: HTTP {response.status_code} ({words[:200]}): check address and request")


def _unreachable(address: str, error: requests.RequestException) -> ChallengeError:
    reason = getattr(error.args[0] if error.args else None, "reason", error)
    return ChallengeError(f"{address}: no answer ({reason}): check that the contest runs and its address is right")
