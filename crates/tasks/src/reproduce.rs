//! `reproduce`: builds every form twice, from inputs at other paths and into other folders, and
//! compares the files byte by byte.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use alknet_image::{ImageForm, ImageInputs};

use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::kernel::KernelFiles;
use crate::parts::ImageParts;
use crate::scratch::ScratchFolder;
use crate::{binary, driver, gpu, image};

/// The two places, with paths of other lengths: a path within a file would move what follows it.
const PLACES: [&str; 2] = ["one", "another/deeper/place"];

/// Bytes that are compared at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Arguments of `reproduce`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct ReproduceArgs {
    /// Compile the binary in both places as well, which takes as long as two first builds
    #[arg(long)]
    whole: bool,
    /// Compare with the files of this folder in the place of a second build
    #[arg(long, value_name = "DIR", conflicts_with = "whole")]
    with: Option<PathBuf>,
    #[command(flatten)]
    drivers: driver::DriverArgs,
}

const EXAMPLE: &str = "\
Examples:

  cargo xtask reproduce                    # the forms twice, from the cached kernel, driver and binary
  cargo xtask reproduce --whole            # and the binary compiled twice, in two folders
  cargo xtask reproduce --with /mnt/out    # with what `cargo xtask image` wrote on another machine

Kernel, drivers and the program for GPUs come from the cache and are not built twice.
The exit code is 1 if a file differs; each such file is named with the offset of its
first difference.";

/// Builds, compares, and names what differs.
pub(crate) fn run(cx: &mut XtaskContext, arguments: &ReproduceArgs) -> Result<()> {
    let parts = ImageParts::ensure(cx, &arguments.drivers.vulkan)?;
    let scratch = ScratchFolder::new(cx.cache(), "reproduce-")?;
    let places = PLACES.map(|place| scratch.path().join(place));
    let first = cx.step("first build", |cx| {
        build(cx, &parts, &places[0], arguments.whole)
    })?;
    let second = match &arguments.with {
        Some(folder) => folder.clone(),
        None => cx.step("second build", |cx| {
            build(cx, &parts, &places[1], arguments.whole)
        })?,
    };
    let comparison = cx.step("comparison", |_| FolderComparison::compare(&first, &second))?;
    for line in comparison.lines() {
        println!("{line}");
    }
    comparison.verdict()
}

/// Builds every form below `place`, and returns the folder of the files.
fn build(cx: &XtaskContext, parts: &ImageParts, place: &Path, whole: bool) -> Result<PathBuf> {
    let making = || TaskError::io(format!("make {}", place.display()));
    let [inputs, out] = ["inputs", "out"].map(|name| place.join(name));
    fs::create_dir_all(&inputs).map_err(making())?;
    let binary = match whole {
        true => compile(cx, place)?,
        false => parts.binary.clone(),
    };
    let at_home = image::inputs(cx, &parts.kernel, &binary, &ImageForm::ALL)?;
    let moved = moved(&at_home, &parts.kernel, &inputs)?;
    image::write(&moved, &ImageForm::ALL, &out, |doing| cx.say(doing))?;
    Ok(out)
}

/// The same inputs at other paths.
fn moved(inputs: &ImageInputs, kernel: &KernelFiles, folder: &Path) -> Result<ImageInputs> {
    let copy = |path: &Path, name: &str| {
        let to = folder.join(name);
        let copied = fs::copy(path, &to);
        copied.map_err(TaskError::io(format!("copy {}", path.display())))?;
        Ok::<PathBuf, TaskError>(to)
    };
    Ok(ImageInputs {
        kernel: copy(&kernel.bzimage, "kernel")?,
        vmlinux: Some(copy(&kernel.vmlinux, "elf-kernel")?),
        kernel_config: Some(copy(&kernel.config, "options")?),
        binary: copy(&inputs.binary, "program")?,
        stub: match &inputs.stub {
            Some(stub) => Some(copy(stub, "efi-stub")?),
            None => None,
        },
        loader: match &inputs.loader {
            Some(loader) => Some(copy(loader, "efi-loader")?),
            None => None,
        },
        ..inputs.clone()
    })
}

/// Copies the tree to `place`, compiles the binary there in a build folder of its own, and adds the
/// program for GPUs from the cache.
fn compile(cx: &XtaskContext, place: &Path) -> Result<PathBuf> {
    let [tree, target] = ["tree", "target"].map(|name| place.join(name));
    copy_tree(cx.root(), &tree)?;
    let mut command = cx.cargo("build");
    command
        .args([
            "--release",
            "--workspace",
            "--locked",
            "--bin",
            binary::NAME,
        ])
        .current_dir(&tree)
        .env("CARGO_TARGET_DIR", &target);
    let what = format!("compile the binary in {}", tree.display());
    cx.run(&mut command, &what, "reproduce")?;
    let plain = target.join(cx.triple()).join("release").join(binary::NAME);
    let gpu = gpu::cached(cx)?.ok_or_else(|| {
        TaskError::Workspace("the program for GPUs is not in the cache any more".to_owned())
    })?;
    binary::carry(cx, &plain, &gpu)
}

/// Copies the files that git tracks, and those that it does not ignore.
fn copy_tree(root: &Path, to: &Path) -> Result<()> {
    let listing = crate::git(root)
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .output()
        .map_err(TaskError::io("run git"))?;
    let names = String::from_utf8_lossy(&listing.stdout).into_owned();
    if !listing.status.success() || names.is_empty() {
        return Err(TaskError::Workspace(format!(
            "--whole copies what git lists, and git lists nothing in {}",
            root.display()
        )));
    }
    for name in names.split_terminator('\0') {
        copy_entry(&root.join(name), &to.join(name))
            .map_err(TaskError::io(format!("copy {name}")))?;
    }
    Ok(())
}

fn copy_entry(from: &Path, to: &Path) -> io::Result<()> {
    let data = match fs::symlink_metadata(from) {
        Ok(data) => data,
        // Deleted, and not yet committed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    if data.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    fs::copy(from, to).map(drop)
}

/// What two folders have in common.
#[derive(Debug, Default, PartialEq, Eq)]
struct FolderComparison {
    files: usize,
    bytes: u64,
    /// Files of one folder only.
    alone: Vec<String>,
    /// Files with the offset of their first difference.
    different: Vec<(String, u64)>,
}

impl FolderComparison {
    fn compare(first: &Path, second: &Path) -> Result<Self> {
        let [one, other] = [files(first)?, files(second)?];
        let mut comparison = Self {
            alone: one.symmetric_difference(&other).cloned().collect(),
            ..Self::default()
        };
        for name in one.intersection(&other) {
            let paths = [first, second].map(|folder| folder.join(name));
            let (bytes, difference) = first_difference(&paths[0], &paths[1])
                .map_err(TaskError::io(format!("compare {name}")))?;
            comparison.files += 1;
            comparison.bytes += bytes;
            let different = difference.map(|offset| (name.clone(), offset));
            comparison.different.extend(different);
        }
        Ok(comparison)
    }

    fn lines(&self) -> Vec<String> {
        let alone = self.alone.iter();
        let mut lines: Vec<String> = alone.map(|name| format!("only once: {name}")).collect();
        let different = self.different.iter();
        lines.extend(different.map(|(name, offset)| format!("differs: {name} at byte {offset}")));
        lines.push(format!(
            "{} files with {} equal bytes in front of a difference or the end",
            self.files, self.bytes
        ));
        lines
    }

    fn verdict(&self) -> Result<()> {
        let first = self.different.first();
        match (first, self.alone.first(), self.files) {
            (Some((name, offset)), _, _) => Err(TaskError::Workspace(format!(
                "the builds differ: {name} at byte {offset}"
            ))),
            (None, Some(name), _) => Err(TaskError::Workspace(format!(
                "the builds differ: only one of them has {name}"
            ))),
            (None, None, 0) => Err(TaskError::Workspace("there are no files".to_owned())),
            (None, None, _) => Ok(()),
        }
    }
}

/// Names of the files in a folder.
fn files(folder: &Path) -> Result<BTreeSet<String>> {
    let reading = || TaskError::io(format!("read {}", folder.display()));
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(reading())? {
        let entry = entry.map_err(reading())?;
        if entry.file_type().map_err(reading())?.is_file() {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// The number of equal bytes at the beginning, and the offset of the first difference. A file that
/// ends earlier differs at its end.
fn first_difference(one: &Path, other: &Path) -> io::Result<(u64, Option<u64>)> {
    let open =
        |path: &Path| File::open(path).map(|file| BufReader::with_capacity(BUFFER_BYTES, file));
    let (mut one, mut other) = (open(one)?, open(other)?);
    let mut offset = 0;
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let common = left.len().min(right.len());
        if common == 0 {
            let differs = left.len() != right.len();
            return Ok((offset, differs.then_some(offset)));
        }
        if left[..common] != right[..common] {
            let pairs = left.iter().zip(right);
            let equal = pairs.take_while(|(left, right)| left == right).count() as u64;
            return Ok((offset + equal, Some(offset + equal)));
        }
        one.consume(common);
        other.consume(common);
        offset += common as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two folders with these files.
    fn compared(first: &[(&str, &[u8])], second: &[(&str, &[u8])]) -> FolderComparison {
        let folders = [first, second].map(|files| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            for (name, bytes) in files {
                fs::write(folder.path().join(name), bytes).expect("writable");
            }
            folder
        });
        FolderComparison::compare(folders[0].path(), folders[1].path()).expect("readable")
    }

    #[test]
    fn equal_folders_are_counted() {
        let files: [(&str, &[u8]); 2] = [("a", b"abc"), ("b", b"")];
        let same = compared(&files, &files);
        assert_eq!((same.files, same.bytes), (2, 3));
        same.verdict().expect("they are equal");
        compared(&[], &[]).verdict().expect_err("a build has files");
    }

    #[test]
    fn a_difference_is_named_by_file_and_offset() {
        let large = vec![7; BUFFER_BYTES + 10];
        let mut other = large.clone();
        other[BUFFER_BYTES + 3] = 8;
        let differing = compared(&[("disk.raw", &large)], &[("disk.raw", &other)]);
        let offset = BUFFER_BYTES as u64 + 3;
        assert_eq!(differing.different, [("disk.raw".to_owned(), offset)]);
        let error = differing.verdict().expect_err("they differ").to_string();
        assert!(
            error.contains(&format!("disk.raw at byte {offset}")),
            "{error}"
        );
        let shorter = compared(&[("a", b"abc")], &[("a", b"ab")]);
        assert_eq!(shorter.different, [("a".to_owned(), 2)]);
    }

    #[test]
    fn a_file_of_one_build_only_is_named() {
        let more = compared(&[("a", b"x")], &[("a", b"x"), ("b", b"y")]);
        assert_eq!(more.alone, ["b"]);
        let error = more.verdict().expect_err("one more").to_string();
        assert!(error.contains("only one of them has b"), "{error}");
    }

    #[test]
    fn a_tree_is_copied_as_git_lists_it() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let git = |arguments: &[&str]| {
            let done = crate::git(root.path()).args(arguments).output();
            assert!(done.expect("git runs").status.success(), "{arguments:?}");
        };
        git(&["init", "--quiet"]);
        for (name, text) in [("kept", "1"), ("deleted", "2"), (".gitignore", "ignored\n")] {
            fs::write(root.path().join(name), text).expect("writable");
        }
        git(&["add", "--all"]);
        fs::remove_file(root.path().join("deleted")).expect("it is there");
        fs::create_dir(root.path().join("folder")).expect("writable");
        fs::write(root.path().join("folder/new"), "3").expect("writable");
        fs::write(root.path().join("ignored"), "4").expect("writable");
        symlink("kept", root.path().join("link")).expect("writable");
        let copy = tempfile::tempdir().expect("a temporary folder");
        copy_tree(root.path(), copy.path()).expect("copied");
        let names = files(copy.path()).expect("readable");
        assert_eq!(names, [".gitignore", "kept"].map(str::to_owned).into());
        let new = fs::read_to_string(copy.path().join("folder/new"));
        assert_eq!(new.expect("copied"), "3");
        let link = fs::read_link(copy.path().join("link")).expect("copied");
        assert_eq!(link, Path::new("kept"));
    }
}
