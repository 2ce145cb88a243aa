import contextlib
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simgan_jax import atomic, challenge, contest, contest_client
from simgan_jax.challenge import ChallengeError
from simgan_jax.contest import Contest

ROOT = Path(__file__).resolve().parent.parent
QUICK: dict[str, Any] = {"progress": False, "backoff": 0.01}


def jpeg(seed, height=10, width=16):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def batch(number, **options):
    return challenge.encode_batch((f"{number}-{i}", jpeg(10 * number + i, **options)) for i in range(2))


@contextlib.contextmanager
def site(answer):
    """A real server on loopback. `answer(path, n)` gives status, headers and body of the n-th request of a path."""
    seen: list[str] = []
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            with lock:
                seen.append(self.path)
                number = seen.count(self.path) - 1
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, body = answer(self.path, number)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/u/alice", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def number_of(path):
    return int(path.partition("?batch=")[2])


def good(path, n):
    return 200, {}, batch(number_of(path))


def refused(url, folder, *parts, count=1, **options):
    with pytest.raises(ChallengeError) as caught:
        contest_client.download(url, count, folder, **{**QUICK, "retries": 2} | options)
    assert str(caught.value).isprintable()
    for part in parts:
        assert part in str(caught.value)


def test_downloads_a_contest_and_submits_to_it(tmp_path, capfd):
    game = Contest("alice", size=12, batch_size=4)
    with contest.serve(game) as url:
        files = contest_client.download(url + "/", 3, tmp_path / "new" / "folder", height=50, width=100)
        assert files == [tmp_path / "new" / "folder" / f"challenge-{i}" for i in range(3)]
        assert [file.read_bytes() for file in files] == [game.batch(i) for i in range(3)]
        assert "3/3" in capfd.readouterr().err
        names = challenge.read(tmp_path / "new" / "folder").names
        texts = [str(game.answer(name)) for name in names]
        challenge.write_solutions(tmp_path / "solutions.json", names, [*texts[:8], "?", "?", "?", "?"])
        result = contest_client.submit(url, tmp_path / "solutions.json")
        assert result == {"total": 12, "correct": 8, "needed": 8, "exact": 8 / 12, "passed": True}
        assert contest_client.submit(url, dict(zip(names, texts, strict=True)))["correct"] == 12


def test_goes_on_where_it_was_broken_off(tmp_path):
    kept = batch(1)
    (tmp_path / "challenge-1").write_bytes(kept)
    (tmp_path / "challenge-2").write_bytes(batch(2)[:-30])
    (tmp_path / "challenge-3").write_bytes(batch(3, width=20))
    with site(good) as (url, seen):
        contest_client.download(url, 5, tmp_path, height=10, width=16, workers=2, **QUICK)
        assert sorted(map(number_of, seen)) == [0, 2, 3, 4]
        assert (tmp_path / "challenge-1").read_bytes() == kept
        assert challenge.read(tmp_path).names == tuple(f"{i}-{j}" for i in range(5) for j in range(2))
        seen.clear()
        contest_client.download(url, 5, tmp_path, **QUICK)
        assert seen == []


def test_tries_again_after_faults_of_the_server(tmp_path):
    def flaky(path, n):
        if n == 0:
            return 503, {}, b"busy"
        if n == 1:
            return 429, {"Retry-After": "0"}, b""
        if n == 2:
            return 200, {"Content-Length": "100000"}, b'{"images": ['
        return good(path, n)

    with site(flaky) as (url, seen):
        contest_client.download(url, 2, tmp_path, **QUICK)
        assert len(seen) == 8
    assert challenge.read(tmp_path).names == ("0-0", "0-1", "1-0", "1-1")


def test_gives_up_in_the_end(tmp_path):
    with site(lambda path, n: (503, {}, b"busy")) as (url, seen):
        refused(url, tmp_path, f"{url}/challenge?batch=0: HTTP 503", "check address")
        assert len(seen) == 3
    with site(lambda path, n: (200, {"Content-Length": "100"}, b"{")) as (url, seen):
        refused(url, tmp_path, f"{url}/challenge: no answer")
        assert len(seen) == 3
    assert os.listdir(tmp_path) == []


def test_a_refusal_is_not_tried_again(tmp_path):
    with site(lambda path, n: (404, {}, b'{"error": "no such\\nuser"}')) as (url, seen):
        refused(url, tmp_path, "HTTP 404 (no such\\nuser)")
        assert len(seen) == 1
    with site(lambda path, n: (403, {}, b"<html>")) as (url, _):
        refused(url, tmp_path, "HTTP 403 (Forbidden)")


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"<html>gone</html>", "no contest JSON"),
        (b'{"images": []}', "holds no images"),
        (batch(0)[:-30], "no contest JSON"),
        (batch(0, height=1, width=1), "1x1 pixels"),
    ],
)
def test_a_bad_batch_is_not_written(tmp_path, body, part):
    with site(lambda path, n: (200, {}, body)) as (url, seen):
        refused(url, tmp_path, f"{url}/challenge?batch=0: ", part, height=10, width=16)
        assert len(seen) == 1
    assert os.listdir(tmp_path) == []


def test_the_good_batches_before_a_bad_one_stay(tmp_path):
    with site(lambda path, n: good(path, n) if number_of(path) < 2 else (200, {}, b"{}")) as (url, _):
        refused(url, tmp_path, "?batch=2: no contest JSON", count=9, workers=1)
    assert sorted(os.listdir(tmp_path)) == ["challenge-0", "challenge-1"]


def test_a_server_that_repeats_itself(tmp_path):
    with site(lambda path, n: (200, {}, batch(0))) as (url, _):
        refused(url, tmp_path, "?batch=1: name '0-0' came before, in ", "?batch=0", count=2, workers=1)


def test_an_unreachable_server(tmp_path):
    with site(good) as (url, _):
        pass
    refused(url, tmp_path, f"{url}/challenge: no answer", "Connection refused", "check that the contest runs")
    with pytest.raises(ChallengeError, match="no answer.*Connection refused"):
        contest_client.submit(url, {"a": "b"}, retries=1, backoff=0.01)


def test_a_server_that_says_nothing(tmp_path):
    release = threading.Event()
    with site(lambda path, n: (200, {}, b"{}" if release.wait(30) else b"")) as (url, _):
        try:
            refused(url, tmp_path, f"{url}/challenge: no answer", "timed out", timeout=(5.0, 0.1), retries=0)
        finally:
            release.set()


@pytest.mark.parametrize("url", ["", "alice", "ftp://host/u/alice", "http://", "http://[/u/alice", "http://h/u?x=1"])
def test_bad_addresses(tmp_path, url):
    refused(url, tmp_path, f"url {url!r}: give the address")
    with pytest.raises(ChallengeError, match="give the address"):
        contest_client.submit(url, {"a": "b"})


def test_bad_counts_and_folders(tmp_path):
    refused("http://127.0.0.1:9/u/alice", tmp_path, "0 batches by 4 workers", count=0)
    refused("http://127.0.0.1:9/u/alice", tmp_path, "1 batches by 0 workers", workers=0)
    (tmp_path / "file").write_bytes(b"")
    refused("http://127.0.0.1:9/u/alice", tmp_path / "file" / "x", "cannot be made", "give another folder")
    (tmp_path / "challenge-0").mkdir()
    with site(good) as (url, _), pytest.raises(atomic.WriteError, match="challenge-0: not written"):
        contest_client.download(url, 1, tmp_path, **QUICK)


@pytest.mark.parametrize(
    ("status", "body", "part"),
    [
        (200, b"<html>", "the answer is no JSON"),
        (200, b"[1]", "the answer is no JSON object"),
        (400, b'{"error": "unknown name"}', r"HTTP 400 \(unknown name\)"),
        (413, b"", r"HTTP 413 \((Request Entity|Content) Too Large\)"),
        (503, b"", "HTTP 503"),
    ],
)
def test_answers_to_a_submission(status, body, part):
    with site(lambda path, n: (status, {}, body)) as (url, seen):
        with pytest.raises(ChallengeError, match=part):
            contest_client.submit(url, {"a": "b"})
        assert seen == ["/u/alice/solution"]


def test_a_larger_contest_takes_more_answers():
    """More than the original's, in which a submission's size grows with the contest."""
    game = contest.Contest("bob", size=15_001)
    answers = {str(i): "abcd" for i in range(15_001)}
    with contest.serve(game) as url, pytest.raises(ChallengeError, match=r"HTTP 400 \(.*no captcha of this contest"):
        contest_client.submit(url, answers, limit=15_001)


def test_submissions_that_are_not_posted(tmp_path):
    many = {str(i): "abcd" for i in range(15_001)}
    with site(good) as (url, seen):
        with pytest.raises(ChallengeError, match="15001 solutions: a contest takes 1 to 15000"):
            contest_client.submit(url, many)
        with pytest.raises(ChallengeError, match="0 solutions"):
            contest_client.submit(url, {})
        with pytest.raises(ChallengeError, match="gone.json: no such file"):
            contest_client.submit(url, tmp_path / "gone.json")
        assert seen == []


def test_scripts_serve_download_and_submit(tmp_path, run_script):
    command = ["-m", "experiments.serve_contest", "--user=bob", "--port=0", "--seed=3", "--size=4", "--batch_size=2"]
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/u/bob", url)
            done = run_script("experiments.download", f"--url={url}", "--count=2", f"--folder={tmp_path / 'in'}")
            assert (done.returncode, done.stdout) == (0, f"2 batches in {tmp_path / 'in'}\n")
            names = challenge.read(tmp_path / "in").names
            assert names == tuple(contest.draw("bob", i, seed=3).name for i in range(4))
            texts = [contest.draw("bob", i, seed=3).answer for i in range(4)]
            for right, code in ((3, 0), (2, 1)):
                challenge.write_solutions(tmp_path / "out.json", names, texts[:right] + ["?"] * (4 - right))
                done = run_script("experiments.submit", f"--url={url}", f"--solutions={tmp_path / 'out.json'}")
                assert done.returncode == code
                assert json.loads(done.stdout)["correct"] == right
            for script, flag in (
                ("download", f"--folder={tmp_path / 'in2'}"),
                ("submit", f"--solutions={tmp_path}/no"),
            ):
                done = run_script(f"experiments.{script}", f"--url={url}x", flag)
                assert done.returncode == 2
                assert done.stderr.strip().splitlines()[-1].endswith(("check address and request", "check the path"))
            done = run_script("experiments.submit", f"--url={url}", f"--solutions={tmp_path / 'out.json'}", "--limit=3")
            assert "4 solutions: a contest takes 1 to 3 at once" in done.stderr
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    (tmp_path / "font.ttf").write_bytes(b"no font")
    done = run_script("experiments.serve_contest", "--port=0", f"--font={tmp_path / 'font.ttf'}")
    assert done.returncode == 2
    assert "not a font file" in done.stderr
    assert done.stderr.count("\n") == 1
