"""Many users at once, with cancels and restarts in between: everybody gets what he or she would get alone.

`IBIS_STRESS_S` seconds long (10 by default; 300 for a thorough look); `-s` shows what was measured.
"""

import gzip
import os
import random
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import nibabel
import numpy as np
import psutil
import pytest

from lib.imaging.masks import write_volume
from lib.imaging.phantom import make_phantom
from lib.server.process import ServerProcess
from tests.e2e.conftest import form, voxel_in

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

SECONDS = float(os.environ.get("IBIS_STRESS_S", "10"))
USERS, REQUESTS = (8, 20) if SECONDS >= 60 else (4, 3)
STRUCTURES = ("liver", "spleen", "left kidney", "right kidney")
NAMES = {"left kidney": "kidney_left", "right kidney": "kidney_right"}


@pytest.fixture(scope="module")
def cases():
    return {f"ct{seed}": make_phantom(seed, spacing=(4.0, 4.0, 8.0)) for seed in (3, 4, 5)}


@pytest.fixture(scope="module")
def folder(cases, tmp_path_factory):
    path = tmp_path_factory.mktemp("users")
    for name, phantom in cases.items():
        write_volume(path / f"{name}.nii.gz", phantom.volume)
    return path


class Site:
    """A server that can be killed and started again while its users are busy."""

    def __init__(self, folder, log):
        self._folder, self._log = folder, log
        self._starts = 0
        self.up = threading.Event()
        self.running = None

    def start(self):
        self._starts += 1
        self.running = ServerProcess(self._folder, self._log / f"server{self._starts}.log", ("--conf", "runs_per_user", "50"))
        self.running.__enter__()
        self.up.set()

    def stop(self):
        self.up.clear()
        self.running.__exit__(None, None, None)

    def memory(self):
        return psutil.Process(self.running.pid).memory_info().rss


class Person:
    def __init__(self, site, name):
        self.site, self.name = site, name
        self.codes = []
        self.restarted = 0

    def ask(self, method, path, **rest):
        """The answer, asked for again when the server was away. A 5xx of a server that stops is not an error of its."""
        for _ in range(600):
            self.site.up.wait(120)
            where = self.site.running
            try:
                answer = httpx.request(method, where.url + path, timeout=300, headers={"X-IBIS-User": self.name}, **rest)
            except httpx.TransportError:
                self.restarted += 1
                time.sleep(0.2)
                continue
            if where is self.site.running and self.site.up.is_set():
                self.codes.append(answer.status_code)
                return answer
            self.restarted += 1
        raise AssertionError("the server did not come back")

    def run(self, image, prompt, cancel=False):
        key = self.ask("POST", "/ibis/runs", json={"image": image, "prompt": prompt}).json()["id"]
        if cancel:
            time.sleep(random.random() * 0.3)
            self.ask("DELETE", f"/ibis/runs/{key}")
        for _ in range(4000):
            status = self.ask("GET", f"/ibis/runs/{key}").json()["status"]
            if status in ("interrupted", "cancelled", "incomplete"):
                self.ask("POST", f"/ibis/runs/{key}/resume")
            elif status == "complete":
                break
            else:
                assert status in ("queued", "running"), status
            time.sleep(0.05)
        return self.mask(self.ask("GET", f"/ibis/runs/{key}/mask?format=nii.gz"))

    def infer(self, image, prompt):
        where = f"/infer/ibis_agent?image={image}&output=image"
        return self.mask(self.ask("POST", where, data=form(prompt=prompt, result_extension=".nii.gz")))

    def click(self, image, label, point):
        where = f"/infer/ibis_click_2d?image={image}&output=image"
        return self.mask(self.ask("POST", where, data=form(label=label, foreground=[point], result_extension=".nii.gz")))

    @staticmethod
    def mask(answer):
        assert answer.status_code == 200, answer.text[:300]
        return np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj)


def points(cases):
    return {
        (image, structure): voxel_in(phantom.labels[NAMES.get(structure, structure)])
        for image, phantom in cases.items()
        for structure in STRUCTURES
    }


def test_everybody_gets_what_they_would_get_alone(folder, cases, tmp_path):
    site = Site(folder, tmp_path)
    site.start()
    try:
        where = points(cases)
        alone = Person(site, "alone")
        runs = {(image, prompt): alone.infer(image, prompt) for image in cases for prompt in STRUCTURES[:3]}
        clicks = {
            (image, name): Person(site, f"first {image} {name}").click(image, "an object", point)
            for (image, name), point in where.items()
        }
        began, until = site.memory(), time.monotonic() + SECONDS
        wrong, everybody = [], [Person(site, f"user {number}") for number in range(USERS)]
        done = [0] * USERS

        def live(number):
            rng, person = random.Random(number), everybody[number]
            while done[number] < REQUESTS or time.monotonic() < until:
                image, prompt = rng.choice(list(runs))
                what = rng.choice(["run", "run and cancel", "infer", "click", "click", "click"])
                if what == "click":
                    structure = rng.choice(STRUCTURES)
                    # A label of its own each time: the clicks of one object go on from each other.
                    label = f"object {done[number]}"
                    same = (person.click(image, label, where[image, structure]) == clicks[image, structure]).all()
                elif what == "infer":
                    same = (person.infer(image, prompt) == runs[image, prompt]).all()
                else:
                    same = (person.run(image, prompt, cancel="cancel" in what) == runs[image, prompt]).all()
                done[number] += 1
                if not same:
                    wrong.append((number, what, image, prompt))

        with ThreadPoolExecutor(USERS) as pool:
            lives = [pool.submit(live, number) for number in range(USERS)]
            for share in (0.4, 0.7):
                time.sleep(max(0.0, until - SECONDS * (1 - share) - time.monotonic()))
                site.stop()
                site.start()
            for one in lives:
                one.result()
        codes = [code for person in everybody for code in person.codes]
        time.sleep(1)
        ended = site.memory()
        print(
            f"\n{sum(done)} requests of {USERS} users, {len(codes)} answers, 2 restarts, {len(wrong)} wrong,"
            f" {sum(code >= 500 for code in codes)} times 5xx, memory {began / 2**20:.0f} MB before, {ended / 2**20:.0f} after"
        )
        assert not wrong
        assert not [code for code in codes if code >= 500]
        assert ended < 1.35 * began
    finally:
        site.stop()


def test_a_click_does_not_wait_for_volume_runs(folder, cases, tmp_path):
    site = Site(folder, tmp_path)
    site.start()
    try:
        point = points(cases)["ct3", "liver"]
        person = Person(site, "clicker")
        person.click("ct3", "warm", point)

        def clicks(count, name):
            times = []
            for number in range(count):
                began = time.monotonic()
                person.click("ct3", f"{name} {number}", point)
                times.append(time.monotonic() - began)
            return times

        alone = clicks(20, "alone")
        busy = Person(site, "busy")
        keys = [
            busy.ask("POST", "/ibis/runs", json={"image": image, "prompt": "liver; spleen; left kidney"}).json()["id"]
            for image in cases
            for _ in range(4)
        ]
        during = clicks(20, "during")
        left = [busy.ask("GET", f"/ibis/runs/{key}").json()["status"] for key in keys]
        print(
            f"\na click alone: median {statistics.median(alone):.3f} s, longest {max(alone):.3f} s;"
            f" while runs go on: median {statistics.median(during):.3f} s, longest {max(during):.3f} s;"
            f" runs left: {sum(status in ('queued', 'running') for status in left)} of {len(left)}"
        )
        assert any(status in ("queued", "running") for status in left)
        assert statistics.median(during) < 2.0
        for key in keys:
            busy.ask("DELETE", f"/ibis/runs/{key}")
    finally:
        site.stop()
