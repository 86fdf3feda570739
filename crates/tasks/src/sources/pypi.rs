//! Source packages of Python's registry, fetched by pip, which knows the address and the proxies of
//! this machine's configuration. Nothing is installed, and no code of a package runs.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;
use crate::sources::debian::only_file;

/// Takes the source archive of `package`, `NAME==VERSION`, from the registry.
pub(super) fn fetch(cx: &XtaskContext, package: &str, sha256: &str, to: &Path) -> Result<()> {
    let scratch = ScratchFolder::new(cx.cache(), "pypi-")?;
    let [backend, packed] = ["backend", "packed"].map(|name| scratch.path().join(name));
    let list = scratch.path().join("python.txt");
    let prepare = || {
        // Before it keeps a source archive, pip asks the archive's build system for the name and the
        // version. This module answers in place of hatchling, which would run code of the package.
        fs::create_dir_all(backend.join("hatchling"))?;
        fs::write(backend.join("hatchling/__init__.py"), "")?;
        fs::write(backend.join("hatchling/build.py"), answer(package))?;
        // With the hash pip does not even unpack other bytes.
        fs::write(&list, format!("{package} --hash=sha256:{sha256}\n"))
    };
    prepare().map_err(TaskError::io("make a folder for a package"))?;
    let mut command = Command::new("python3");
    command
        .args(["-m", "pip", "download", "--quiet"])
        .args(["--disable-pip-version-check", "--no-cache-dir", "--no-deps"])
        .args(["--require-hashes", "--no-binary", ":all:"])
        // Otherwise pip would install the true build system, and not ask the one above.
        .args(["--no-build-isolation", "--requirement"])
        .arg(&list)
        .arg("--dest")
        .arg(&packed)
        .env("PYTHONPATH", &backend);
    cx.run(&mut command, &format!("download {package}"), "pypi")?;
    let archive = only_file(&packed)?;
    fs::copy(&archive, to)
        .map(|_| ())
        .map_err(TaskError::io(format!("copy {}", archive.display())))
}

/// The module that answers pip (PEP 517).
fn answer(package: &str) -> String {
    let (name, version) = package.split_once("==").unwrap_or((package, "0"));
    format!(
        "from pathlib import Path\n\
         def prepare_metadata_for_build_wheel(folder, settings=None):\n\
         \x20   made = Path(folder, \"{name}-{version}.dist-info\")\n\
         \x20   made.mkdir()\n\
         \x20   text = \"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n\"\n\
         \x20   (made / \"METADATA\").write_text(text)\n\
         \x20   return made.name\n"
    )
}
