"""The reference client of TUF refreshes a repository in a folder and downloads a target.

python3 accept.py REPOSITORY ROOT TARGET...
"""

import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater


class Files(FetcherInterface):
    """Files of a folder, as a server of files would answer."""

    def _fetch(self, url):
        path = Path(unquote(urlparse(url).path))
        if not path.is_file():
            raise DownloadHTTPError(f"no file {path}", 404)
        yield path.read_bytes()


repository, root, *targets = sys.argv[1:]
repository = Path(repository).resolve()
with tempfile.TemporaryDirectory() as kept, tempfile.TemporaryDirectory() as downloads:
    updater = Updater(
        metadata_dir=kept,
        metadata_base_url=f"file://{repository}/metadata/",
        target_dir=downloads,
        target_base_url=f"file://{repository}/targets/",
        fetcher=Files(),
        bootstrap=Path(root).read_bytes(),
    )
    updater.refresh()
    for name in targets:
        target = updater.get_targetinfo(name)
        if target is None:
            sys.exit(f"no target {name}")
        content = Path(updater.download_target(target)).read_bytes()
        version = target.unrecognized_fields["custom"]["alknet"]["version"]
        print(name, version, len(content))
