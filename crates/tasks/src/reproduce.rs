//! `reproduce`: builds every form twice, from inputs at other paths and into other folders, packs
//! both, makes update bundles of each, and compares the files byte by byte. With `--whole` it also
//! builds most of the inputs twice. With `--programs` it compares the programs in the cache with
//! those of one more build.

mod programs;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_image::{ImageForm, ImageInputs, Manifest, OutputRole};
use data_encoding::BASE64;

use crate::context::XtaskContext;
use crate::driver::DriverSelection;
use crate::failure::{Result, TaskError};
use crate::kernel::KernelFiles;
use crate::parts::ImageParts;
use crate::scratch::ScratchFolder;
use crate::{binary, driver, gpu, image, kernel, loader};

/// The two places, with paths of other lengths: a path within a file would move what follows it.
const PLACES: [&str; 2] = ["one", "another/deeper/place"];

/// Bytes that are compared at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Folders of a place: the inputs of its image, and the program for GPUs that it compiled.
const INPUTS: &str = "inputs";
const GPU: &str = "gpu";

/// The version of the program from which the bundle with the delta starts. The two programs differ in nothing else, so
/// that the delta takes seconds.
const EARLIER: &str = "0.0.1";

/// The update bundle, and the root document in it.
const BUNDLE: &str = "bundle.tar";
const ROOT: &str = "1.root.json";

/// When the documents of the bundle expire. No machine gets them, and a day that follows from the clock would be another
/// one in each build.
const EXPIRES: &str = "2100-01-01";

/// The private key that signs both bundles. Nothing trusts it.
const SEED: [u8; 32] = [1; 32];

/// What stands before the seed of a private Ed25519 key in PKCS #8 (RFC 8410 section 7).
const PKCS8_BEFORE_SEED: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Arguments of `reproduce`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct ReproduceArgs {
    /// Compile binary, program for GPUs and UEFI loader in both places and the kernel once more, which takes as long as
    /// two first builds and half an hour
    #[arg(long)]
    whole: bool,
    /// Compare with the files of this folder in the place of a second build
    #[arg(long, value_name = "DIR", conflicts_with = "whole")]
    with: Option<PathBuf>,
    /// Compare the programs that the cache has of this tree, with the drivers that they have, with those of one more
    /// build in another folder, which takes as long as a first build
    #[arg(long, conflicts_with_all = ["whole", "with", "vulkan"])]
    programs: bool,
    /// Print JSON; only with --programs
    #[arg(long, requires = "programs")]
    json: bool,
    #[command(flatten)]
    drivers: driver::DriverArgs,
}

const EXAMPLE: &str = "\
Examples:

  cargo xtask reproduce                    # the forms, packed files and bundles twice, from the cached parts
  cargo xtask reproduce --whole            # and most parts built twice, in two folders
  cargo xtask reproduce --with /mnt/out    # with what `cargo xtask image` wrote on another machine
  cargo xtask reproduce --programs --json  # the programs in the cache, and one more build of them

With --whole these are built twice: binary, program for GPUs, UEFI loader and kernel. The Vulkan
driver, the files of GRUB and the compiler's library for UEFI come from the cache in both places.
With --with there is no update bundle, and packed files are compared if the folder has some; make
these by `cargo xtask image --packed` without --url.
With --programs the command compares the binary before it carries the program for GPUs, the program
for GPUs before it is stripped, and both programs for UEFI, as cargo links them. It ends with exit
code 2 if the programs in the cache are not those of this tree.
The exit code is 1 if a file differs; each such file is named with the offset of its
first difference.";

/// Builds, compares, and names what differs.
pub(crate) fn run(cx: &mut XtaskContext, arguments: &ReproduceArgs) -> Result<()> {
    if arguments.programs {
        return programs::run(cx, arguments.json);
    }
    let parts = ImageParts::ensure(cx, &arguments.drivers.vulkan)?;
    let scratch = ScratchFolder::new(cx.cache(), "reproduce-")?;
    let places = PLACES.map(|place| scratch.path().join(place));
    let plan = ComparedBuild {
        parts: &parts,
        compiled: arguments.whole.then_some(&arguments.drivers.vulkan),
        packed: arguments.with.as_deref().is_none_or(is_packed),
        bundled: arguments.with.is_none(),
    };
    let first = cx.step("first build", |cx| plan.make(cx, &parts.kernel, &places[0]))?;
    let mut pairs = Vec::new();
    let second = match &arguments.with {
        Some(folder) => folder.clone(),
        None if arguments.whole => {
            // Before the forms, so that the first difference that is named is that of a part.
            pairs.extend([INPUTS, GPU].map(|name| places.each_ref().map(|place| place.join(name))));
            let kernel = kernel_again(cx, &parts.kernel, &places[1])?;
            cx.step("second build", |cx| plan.make(cx, &kernel, &places[1]))?
        }
        None => cx.step("second build", |cx| {
            plan.make(cx, &parts.kernel, &places[1])
        })?,
    };
    pairs.push([first, second]);
    let comparisons = cx.step("comparison", |_| {
        let compared = pairs.iter();
        compared
            .map(|[one, other]| FolderComparison::compare(one, other))
            .collect::<Result<Vec<_>>>()
    })?;
    for line in comparisons.iter().flat_map(FolderComparison::lines) {
        println!("{line}");
    }
    comparisons.iter().try_for_each(FolderComparison::verdict)
}

/// Builds the kernel once more, past the cache.
fn kernel_again(cx: &mut XtaskContext, kernel: &KernelFiles, place: &Path) -> Result<KernelFiles> {
    let text = "the kernel is built once more: about half an hour on two processors";
    cx.board().print(text);
    cx.step("kernel once more", |cx| {
        kernel::build_again(cx, kernel, &place.join("kernel"))
    })
}

/// Whether a folder of files has the packed disk.
fn is_packed(folder: &Path) -> bool {
    Manifest::read(folder).is_ok_and(|manifest| {
        let mut roles = manifest.outputs.iter().map(|output| output.role);
        roles.any(|role| role == OutputRole::PackedDisk)
    })
}

/// What each place makes.
#[derive(Debug)]
struct ComparedBuild<'a> {
    parts: &'a ImageParts,
    /// Its programs are compiled in the place, with these drivers from the cache.
    compiled: Option<&'a DriverSelection>,
    /// The disk is packed, too.
    packed: bool,
    /// Update bundles are made, too.
    bundled: bool,
}

impl ComparedBuild<'_> {
    /// Builds every form below `place` with this kernel, and returns the folder of the files.
    fn make(&self, cx: &XtaskContext, kernel: &KernelFiles, place: &Path) -> Result<PathBuf> {
        let making = || TaskError::io(format!("make {}", place.display()));
        let [inputs, out] = [INPUTS, "out"].map(|name| place.join(name));
        fs::create_dir_all(&inputs).map_err(making())?;
        let compiled = self
            .compiled
            .map(|drivers| CompiledPrograms::compile(cx, drivers, place));
        let compiled = compiled.transpose()?;
        let binary = compiled.as_ref().map(|programs| &programs.binary);
        let binary = binary.unwrap_or(&self.parts.binary);
        // The manifest names the source of a kernel, which only the kernel in the cache is found by.
        let mut at_home = image::inputs(cx, &self.parts.kernel, binary, &ImageForm::ALL)?;
        if let Some(programs) = compiled {
            at_home.loader = Some(programs.loader);
        }
        let moved = moved(&at_home, kernel, &inputs)?;
        image::write(&moved, &ImageForm::ALL, &out, |doing| cx.say(doing))?;
        if self.packed {
            image::pack(cx, &out, None)?;
        }
        if self.bundled {
            let key = inputs.join("release.pem");
            fs::write(&key, key_file()).map_err(making())?;
            let earlier = place.join("earlier");
            let before = ImageInputs {
                version: EARLIER.to_owned(),
                ..moved.clone()
            };
            image::write(&before, &[ImageForm::Uki], &earlier, |doing| cx.say(doing))?;
            bundle(cx, &moved.binary, &key, &earlier, &out)?;
        }
        Ok(out)
    }
}

/// Makes a root document and two update bundles of the EFI program in `out` by the built program, as an owner does: one
/// with the whole program, and one with the delta from the program in `earlier`.
fn bundle(cx: &XtaskContext, alknet: &Path, key: &Path, earlier: &Path, out: &Path) -> Result<()> {
    let root = out.join(ROOT);
    let mut rooted = Command::new(alknet);
    rooted
        .args(["image", "root", "--expires", EXPIRES, "--key"])
        .arg(key)
        .arg("--out")
        .arg(&root);
    cx.run(&mut rooted, "make a root document", "reproduce-root")?;
    let mut bundled = Command::new(alknet);
    bundled
        .args(["image", "bundle", "--number", "1", "--expires", EXPIRES])
        .args(["--timestamp-expires", EXPIRES, "--key"])
        .arg(key)
        .arg("--root")
        .arg(&root)
        .arg("--from")
        .arg(earlier)
        .arg("--out")
        .arg(out.join(BUNDLE))
        .arg(out);
    cx.run(&mut bundled, "make update bundles", "reproduce-bundle")
}

/// The key that signs, as a file of OpenSSL.
fn key_file() -> String {
    let der = [&PKCS8_BEFORE_SEED[..], &SEED].concat();
    let label = "PRIVATE KEY";
    let text = BASE64.encode(&der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
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

/// The programs of an image that a place compiles.
#[derive(Debug)]
struct CompiledPrograms {
    /// With the program for GPUs behind it.
    binary: PathBuf,
    /// The loader for UEFI.
    loader: PathBuf,
}

impl CompiledPrograms {
    /// Copies the tree to `place`, and compiles there in a build folder of its own. The drivers come from the cache.
    fn compile(cx: &XtaskContext, selection: &DriverSelection, place: &Path) -> Result<Self> {
        let [tree, target] = ["tree", "target"].map(|name| place.join(name));
        copy_tree(cx.root(), &tree)?;
        driver::write_linked(&tree, &driver::ensure(cx, selection)?)?;
        let plain = compile(cx, &tree, &target, binary::NAME)?;
        let gpu = compile(cx, &tree, &target, gpu::NAME)?;
        let gpu = gpu::pack_into(cx, &gpu, selection, &place.join(GPU))?;
        Ok(Self {
            binary: binary::carry(cx, &plain, &gpu)?,
            loader: loader::build_in(cx, &tree, &target)?,
        })
    }
}

/// Compiles one program of the tree.
fn compile(cx: &XtaskContext, tree: &Path, target: &Path, program: &str) -> Result<PathBuf> {
    let mut command = cx.cargo_in("build", tree, target);
    // As part of the whole workspace, so that libraries have the features of every other build.
    command.args(["--release", "--workspace", "--locked", "--bin", program]);
    let what = format!("compile {program} in {}", tree.display());
    cx.run(&mut command, &what, &format!("reproduce-{program}"))?;
    Ok(target.join(cx.triple()).join("release").join(program))
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
    fn openssl_reads_the_key_that_signs_both_bundles() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let key = folder.path().join("key.pem");
        fs::write(&key, key_file()).expect("writable");
        let read = Command::new("openssl")
            .args(["pkey", "-noout", "-text", "-in"])
            .arg(&key)
            .output()
            .expect("openssl runs");
        let said = String::from_utf8_lossy(&read.stdout);
        assert!(said.starts_with("ED25519 Private-Key"), "{read:?}");
    }

    /// The folder of `--with` has packed files only if its maker said so.
    #[test]
    fn a_folder_is_packed_if_its_manifest_names_the_packed_disk() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let put = |role: &str| {
            let manifest = serde_json::json!({
                "version": "1", "git": "", "arch": "x86_64", "kernel_release": "", "kernel_config_sha256": null,
                "inputs": [], "boot": [],
                "outputs": [{ "form": "raw", "role": role, "file": "a", "bytes": 1, "sha256": "" }],
            });
            let path = folder.path().join(alknet_image::MANIFEST_FILE);
            fs::write(path, manifest.to_string()).expect("writable");
            is_packed(folder.path())
        };
        assert!(put("packed-disk"));
        assert!(!put("disk"));
        assert!(!is_packed(&folder.path().join("missing")));
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
