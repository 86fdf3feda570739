//! The tools, and a mounter that uses them, so that no test needs special permissions.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_provisioning::{FileSystem, Mounted, Mounter};
use tempfile::TempDir;

/// Runs a tool that the machine must have.
pub(crate) fn tool(program: &str, args: &[&str], dir: &Path) {
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let output = Command::new(program)
        .args(args)
        .env("PATH", path)
        .current_dir(dir)
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

/// Extracts the files of an image, and puts them back when it is read again.
#[derive(Default)]
pub(crate) struct ImageExtractor {
    taken: RefCell<Vec<TempDir>>,
    written: RefCell<Option<(PathBuf, PathBuf)>>,
}

impl ImageExtractor {
    /// Puts back what was written.
    pub(crate) fn settle(&self) {
        let Some((device, content)) = self.written.borrow_mut().take() else {
            return;
        };
        let image = device.to_str().expect("text");
        for entry in std::fs::read_dir(&content).expect("there") {
            let path = entry.expect("there").path();
            let args = ["-s", "-o", "-i", image, path.to_str().expect("text"), "::"];
            tool("mcopy", &args, Path::new("/"));
        }
    }
}

impl Mounter for ImageExtractor {
    fn mount(&self, device: &Path, file_system: FileSystem, _: &Path) -> io::Result<Mounted> {
        self.settle();
        let dir = tempfile::tempdir()?;
        let (image, into) = (device.to_str(), dir.path().to_str());
        let (image, into) = (image.unwrap_or_default(), into.unwrap_or_default());
        let (program, args) = match file_system {
            FileSystem::Vfat => ("mcopy", vec!["-s", "-n", "-i", image, "::*", into]),
            _ => (
                "xorriso",
                vec!["-osirrox", "on", "-indev", image, "-extract", "/", into],
            ),
        };
        tool(program, &args, Path::new("/"));
        let mounted = Mounted::directory(dir.path().to_owned());
        self.taken.borrow_mut().push(dir);
        Ok(mounted)
    }

    fn mount_writable(
        &self,
        device: &Path,
        file_system: FileSystem,
        at: &Path,
    ) -> io::Result<Mounted> {
        if file_system != FileSystem::Vfat {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let mounted = self.mount(device, file_system, at)?;
        let content = mounted.root().to_owned();
        *self.written.borrow_mut() = Some((device.to_owned(), content));
        Ok(mounted)
    }
}
