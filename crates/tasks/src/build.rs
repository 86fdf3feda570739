//! `build`: the one binary for this computer, without a kernel or an image.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::{binary, driver, parts};

/// Mode of an installed binary: every user may start it, and its owner may replace it.
const INSTALLED_MODE: u32 = 0o755;

/// Arguments of `build`.
#[derive(Debug, clap::Args)]
pub(crate) struct BuildArgs {
    /// Copy the binary to DIR/alknet; the folder is made if it is missing
    #[arg(long, value_name = "DIR")]
    install: Option<PathBuf>,
    #[command(flatten)]
    drivers: driver::DriverArgs,
}

/// Builds the binary, or finds it in the cache, and prints its path: in the cache, or where it was
/// installed.
pub(crate) fn run(cx: &mut XtaskContext, arguments: &BuildArgs) -> Result<()> {
    let binary = parts::ensure_binary(cx, &arguments.drivers.vulkan)?;
    let path = match &arguments.install {
        Some(folder) => install(&binary, folder).map_err(TaskError::io(format!(
            "copy {} into {}",
            binary.display(),
            folder.display()
        )))?,
        None => binary,
    };
    println!("{}", path.display());
    Ok(())
}

/// Copies the binary into a folder.
fn install(binary: &Path, folder: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let target = folder.join(binary::NAME);
    // A node may run the file at this path. The kernel refuses to write a running program
    // (ETXTBSY), and a new file under its name leaves the running one unchanged.
    let mut fresh = NamedTempFile::new_in(folder)?;
    io::copy(&mut File::open(binary)?, &mut fresh)?;
    let mode = Permissions::from_mode(INSTALLED_MODE);
    fresh.as_file().set_permissions(mode)?;
    fresh.persist(&target).map_err(|failed| failed.error)?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installed_binary_replaces_the_one_before_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [built, bin] = ["built", "home/bin"].map(|name| folder.path().join(name));
        for text in ["first", "second"] {
            fs::write(&built, text).expect("writable");
            // The former file stays unchanged for the process that has it open.
            let running = File::open(bin.join(binary::NAME)).ok();
            let place = install(&built, &bin).expect("installed");
            assert_eq!(place, bin.join(binary::NAME));
            assert_eq!(fs::read_to_string(&place).expect("readable"), text);
            let data = fs::metadata(&place).expect("it is there");
            assert_eq!(data.permissions().mode() & 0o777, INSTALLED_MODE);
            let running = running.map(|file| io::read_to_string(file).expect("readable"));
            assert_eq!(running.is_some(), text == "second");
            assert!(running.is_none_or(|before| before == "first"));
        }
        let left = fs::read_dir(&bin).expect("the folder is there").count();
        assert_eq!(left, 1, "no temporary file is left");
    }
}
