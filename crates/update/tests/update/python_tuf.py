"""Runs the tests of the reference client of TUF, and writes down what they offer to it.

python3 python_tuf.py SOURCE FOLDER

SOURCE is the source of the reference implementation, with its tests. Before each refresh and each download of a test,
and before each document that a test gives to the client's core, the script writes what is offered to FOLDER/NUMBER:
metadata/, targets/ and bootstrap.json, the root that the client was made with. It prints a line of JSON for each of
them, and one about the run of the tests.
"""

import datetime
import itertools
import json
import sys
import unittest
from pathlib import Path, PurePosixPath

SOURCE, FOLDER = map(Path, sys.argv[1:])
sys.path.append(str(SOURCE))

import tuf.ngclient  # noqa: E402
from cryptography.hazmat.primitives import serialization  # noqa: E402
from rekeyed import Repository  # noqa: E402
from tuf.api.exceptions import EqualVersionNumberError  # noqa: E402
from tuf.ngclient import Updater, UpdaterConfig  # noqa: E402
from tuf.ngclient._internal import trusted_metadata_set  # noqa: E402

MODULES = [
    "tests.test_trusted_metadata_set",
    "tests.test_updater_consistent_snapshot",
    "tests.test_updater_fetch_target",
    "tests.test_updater_key_rotations",
    "tests.test_updater_top_level_update",
]
numbers = itertools.count()
records = []
running = None


def write(path, content):
    # The tests count the calls of the built-in `open`, which pathlib does not use.
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_repository(simulator, folder):
    """Writes what a client could fetch now. The tests compare the simulator's list of requests, so it stays the same."""
    tracker = simulator.fetch_tracker
    requests = list(tracker.metadata)
    metadata = {"timestamp.json": simulator.fetch_metadata("timestamp")}
    for number, root in enumerate(simulator.signed_roots, 1):
        metadata[f"{number}.root.json"] = root
    versions = {"snapshot": simulator.timestamp.snapshot_meta.version}
    if targets := simulator.snapshot.meta.get("targets.json"):
        versions["targets"] = targets.version
    for role, version in versions.items():
        document = simulator.fetch_metadata(role)
        metadata[f"{role}.json"] = metadata[f"{version}.{role}.json"] = document
    tracker.metadata[:] = requests
    for name, document in metadata.items():
        write(folder / "metadata" / name, document)
    for name, target in simulator.target_files.items():
        path = PurePosixPath(name)
        prefixed = f"{target.target_file.hashes['sha256']}.{path.name}"
        for file in [path, path.with_name(prefixed)]:
            write(folder / "targets" / file, target.data)


def start_record(client, bootstrap, target=None):
    """Begins to write down what is offered to a client now, and returns the folder and the record."""
    name = str(next(numbers))
    folder = FOLDER / name
    write(folder / "bootstrap.json", bootstrap)
    record = {
        "folder": name,
        "test": ".".join(running.id().split(".")[1:]),
        "case": getattr(running, "case_name", None),
        "client": client,
        # The tests replace the clock.
        "now_s": int(datetime.datetime.now(datetime.timezone.utc).timestamp()),
        "target": target,
        "error": None,
    }
    records.append(record)
    return folder, record


def run_recorded(record, action):
    try:
        return action()
    except Exception as error:
        # The client ends a refresh well where the timestamp is the one that it has.
        if not isinstance(error, EqualVersionNumberError):
            record["error"] = type(error).__name__
        raise


class RecordedUpdater(Updater):
    """The reference client, whose refreshes and downloads are written down."""

    def __init__(self, metadata_dir, *arguments, bootstrap, **options):
        super().__init__(metadata_dir, *arguments, bootstrap=bootstrap, **options)
        self.bootstrap = bootstrap
        self.client = metadata_dir

    def recorded(self, action, target=None):
        # Limits and names that a test sets for its client are no part of the repository.
        if vars(self.config) != vars(UpdaterConfig()) or self.bootstrap is None:
            return action()
        folder, record = start_record(self.client, self.bootstrap, target)
        write_repository(self._fetcher, folder)
        return run_recorded(record, action)

    def refresh(self):
        return self.recorded(super().refresh)

    def download_target(self, target, *arguments, **options):
        def download():
            return super(RecordedUpdater, self).download_target(target, *arguments, **options)

        return self.recorded(download, target.path)


class RecordedSet(trusted_metadata_set.TrustedMetadataSet):
    """The core of the reference client, which gets one document after the other."""

    def __init__(self, bootstrap, envelope):
        self.bootstrap = bootstrap
        self.client = f"core {next(numbers)}"
        self.files = {}
        self.accepted = set()
        _, record = start_record(self.client, bootstrap)
        run_recorded(record, lambda: super(RecordedSet, self).__init__(bootstrap, envelope))

    def recorded(self, name, document, update):
        files = self.files | {name: document}
        folder, record = start_record(self.client, self.bootstrap)
        for file, content in files.items():
            write(folder / "metadata" / file, content)
        try:
            result = run_recorded(record, lambda: update(document))
        except RuntimeError:
            # The test calls the core in a wrong order, which no repository can cause.
            records.remove(record)
            raise
        finally:
            # A test may show that the next document is refused because of this one.
            if record["error"] is None or name not in self.accepted and "root" not in name:
                self.files = files
        self.accepted.add(name)
        return result

    def update_root(self, document):
        name = f"{self.root.version + 1}.root.json"
        return self.recorded(name, document, super().update_root)

    def update_timestamp(self, document):
        return self.recorded("timestamp.json", document, super().update_timestamp)

    def update_snapshot(self, document, trusted=False):
        def update(document):
            return super(RecordedSet, self).update_snapshot(document, trusted)

        return self.recorded("snapshot.json", document, update)

    def update_targets(self, document):
        return self.recorded("targets.json", document, super().update_targets)


def rekey_tests(utils):
    """Gives the repository of the tests of the core other keys, and the tests their private parts."""
    data = Path(utils.TESTS_DIR, "repository_data")
    repository = Repository(data / "repository" / "metadata")
    repository.convert_all()
    utils.TESTS_DIR = str(FOLDER / "tests")
    fresh = Path(utils.TESTS_DIR, "repository_data")
    for name, document in repository.done.items():
        write(fresh / "repository" / "metadata" / name, document)
    for key in data.joinpath("keystore").glob("*_key"):
        public = serialization.load_pem_private_key(key.read_bytes(), None).public_key()
        if private := repository.keys.private(public):
            pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
            plain = serialization.NoEncryption()
            write(fresh / "keystore" / key.name, private.private_bytes(pem, pkcs8, plain))


class Result(unittest.TestResult):
    def startTest(self, test):
        global running
        running = test
        super().startTest(test)


# The tests import the classes by their names.
tuf.ngclient.Updater = RecordedUpdater
trusted_metadata_set.TrustedMetadataSet = RecordedSet
from tests import utils  # noqa: E402

rekey_tests(utils)
result = Result()
unittest.defaultTestLoader.loadTestsFromNames(MODULES).run(result)
for record in records:
    print(json.dumps(record))
failed = [str(test) + "\n" + text for test, text in result.errors + result.failures]
print(json.dumps({"run": result.testsRun, "failed": failed}))
