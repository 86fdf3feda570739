//! Debian packages of the machine that builds, from which parts of an image are linked.

use std::collections::BTreeSet;
use std::path::Path;

use crate::failure::{Result, TaskError};
use crate::{digest, steps};

/// The version of an installed package. `None` on a system without Debian's packages.
pub(crate) fn version(package: &str) -> Option<String> {
    ask(&["-W", "-f=${Version}", package])
}

/// One SHA-256 for the static archives of an installed package: that of what `sha256sum` prints about them, sorted by
/// path. `None` where [`version`] is `None`, and for a package without archives.
pub(crate) fn archives_sha256(package: &str) -> Result<Option<String>> {
    let files = ask(&["-L", package]).unwrap_or_default();
    let archives = files.lines().filter(|file| file.ends_with(".a"));
    let archives: BTreeSet<String> = archives.map(str::to_owned).collect();
    if archives.is_empty() {
        return Ok(None);
    }
    let sum = digest::of_list(Path::new("/"), &archives);
    let sum = sum.map_err(TaskError::io(format!("read the archives of {package}")))?;
    Ok(Some(sum))
}

/// What the database of installed packages says, if it says something.
fn ask(words: &[&str]) -> Option<String> {
    let output = steps::program("dpkg-query").args(words).output().ok();
    let output = output.filter(|output| output.status.success())?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!said.is_empty()).then_some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The command of docs/image.md.
    const COMMAND: &str =
        r"dpkg-query -L libc6-dev | grep '\.a$' | LC_ALL=C sort | xargs sha256sum | sha256sum";

    #[test]
    fn the_archives_of_a_package_hash_as_by_the_command_of_the_page() {
        let page = include_str!("../../../docs/image.md");
        assert!(page.contains(COMMAND), "docs/image.md has another command");
        let output = steps::program("sh").args(["-c", COMMAND]).output();
        let said = output.expect("a shell").stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        let sum = archives_sha256("libc6-dev").expect("readable");
        let sum = sum.expect("the C library has archives");
        assert_eq!(said, format!("{sum}  -\n"));
        assert!(version("libc6-dev").is_some());
    }

    #[test]
    fn a_package_that_is_not_installed_has_neither_version_nor_hash() {
        assert_eq!(version("no-such-package"), None);
        let sum = archives_sha256("no-such-package").expect("nothing to read");
        assert_eq!(sum, None);
    }
}
