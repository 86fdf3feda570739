//! Builds the kernel from the pinned source and the fragments in `kernel-config/`.
//!
//! The result lies in the cache under a name of everything that decides its bytes: the source's
//! hash, the fragments, the compiler and the steps.

mod build;
mod config;

use std::fs;
use std::path::{Path, PathBuf};

use self::build::KernelBuild;
use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::sources::{self, SourcePin};
use crate::{digest, steps};

/// The fragments of the one x86-64 kernel, in the order in which they are merged.
pub const X86_64_FRAGMENTS: [&str; 14] = [
    "base",
    "isolation",
    "hardening",
    "network",
    "virt-x86_64",
    "virtio",
    "crypto",
    "crypto-x86_64",
    "tpm",
    "storage",
    "storage-metal",
    "clouds-x86_64",
    "metal-x86_64",
    "net-extra",
];

/// Largest kernel in bytes: docs/SPECIFICATION.md promises at most 10 MB.
pub const BZIMAGE_BYTES_MAX: u64 = 10_000_000;

/// The code that builds it, which is a part of its name.
const STEPS: [&str; 2] = [include_str!("build.rs"), include_str!("../steps.rs")];

/// A built kernel.
#[derive(Clone, Debug)]
pub struct KernelFiles {
    /// For boot loaders, EFI and QEMU's `-kernel`.
    pub bzimage: PathBuf,
    /// ELF with a PVH entry, without symbols.
    pub vmlinux: PathBuf,
    /// The whole configuration.
    pub config: PathBuf,
}

/// Finds the kernel in the cache, or builds it.
pub fn ensure(cx: &XtaskContext) -> Result<KernelFiles> {
    let fragments = read_fragments(cx.root())?;
    let tools = tool_versions()?;
    // This precedes the installation of the compilers, which a kernel from the cache does not need.
    if let Some(kernel) = find(cx, &fragments, &tools)? {
        return Ok(kernel);
    }
    cx.install_compilers()?;
    let source = sources::obtain(cx, "linux")?;
    let kernel = KernelFiles::at(cx.cache(), &key(&source.pin.sha256, &fragments, &tools));
    KernelBuild::new(cx, &fragments)?.run(&source.path, &kernel)?;
    Ok(kernel)
}

/// Builds a kernel of the cache once more, from the same source, and puts its files into `folder`, which must not exist.
/// The caller compares both.
pub(crate) fn build_again(
    cx: &XtaskContext,
    kernel: &KernelFiles,
    folder: &Path,
) -> Result<KernelFiles> {
    cx.install_compilers()?;
    let archive = sources::obtain(cx, "linux")?;
    let before = source(cx, kernel)?;
    // Several versions of the source are accepted, and another one makes another kernel.
    if archive.pin.sha256 != before.sha256 {
        return Err(TaskError::Workspace(format!(
            "the kernel in the cache was built from Linux {}, and the source at hand is that of {}",
            before.version, archive.pin.version
        )));
    }
    let again = KernelFiles::in_folder(folder);
    KernelBuild::new(cx, &read_fragments(cx.root())?)?.run(&archive.path, &again)?;
    Ok(again)
}

/// The kernel of this tree, if it is in the cache.
pub(crate) fn cached(cx: &XtaskContext) -> Result<Option<KernelFiles>> {
    find(cx, &read_fragments(cx.root())?, &tool_versions()?)
}

/// The source that a kernel was built from.
pub(crate) fn source(cx: &XtaskContext, kernel: &KernelFiles) -> Result<SourcePin> {
    let (fragments, tools) = (read_fragments(cx.root())?, tool_versions()?);
    let mut pins = sources::accepted("linux")?.into_iter();
    let built = pins.find(|pin| {
        let key = key(&pin.sha256, &fragments, &tools);
        KernelFiles::at(cx.cache(), &key).bzimage == kernel.bzimage
    });
    // Another compiler may have built it.
    built.map_or_else(|| sources::likely(cx, "linux"), Ok)
}

fn find(
    cx: &XtaskContext,
    fragments: &[(String, String)],
    tools: &str,
) -> Result<Option<KernelFiles>> {
    let pins = sources::accepted("linux")?.into_iter();
    let mut kernels =
        pins.map(|pin| KernelFiles::at(cx.cache(), &key(&pin.sha256, fragments, tools)));
    Ok(kernels.find(KernelFiles::exists))
}

impl KernelFiles {
    fn at(cache: &Path, key: &str) -> Self {
        Self::in_folder(&cache.join("kernel").join(key))
    }

    fn in_folder(folder: &Path) -> Self {
        Self {
            bzimage: folder.join("bzImage"),
            vmlinux: folder.join("vmlinux"),
            config: folder.join("config"),
        }
    }

    fn exists(&self) -> bool {
        [&self.bzimage, &self.vmlinux, &self.config]
            .iter()
            .all(|file| file.exists())
    }

    /// The folder of its files.
    pub(crate) fn folder(&self) -> &Path {
        self.bzimage.parent().unwrap_or(&self.bzimage)
    }
}

fn key(source: &str, fragments: &[(String, String)], tools: &str) -> String {
    let texts = fragments.iter().map(|(_, text)| text.as_bytes());
    let steps = STEPS.map(str::as_bytes);
    digest::key(
        [source.as_bytes(), tools.as_bytes()]
            .into_iter()
            .chain(steps)
            .chain(texts),
    )
}

fn read_fragments(root: &Path) -> Result<Vec<(String, String)>> {
    let read = |name: &&str| {
        let path = root.join("kernel-config").join(format!("{name}.config"));
        let text =
            fs::read_to_string(&path).map_err(TaskError::io(format!("read {}", path.display())))?;
        Ok(((*name).to_owned(), text))
    };
    X86_64_FRAGMENTS.iter().map(read).collect()
}

/// First lines of the version texts of the compiler and linker that the steps start.
pub fn tool_versions() -> Result<String> {
    let mut text = String::new();
    for tool in ["gcc", "ld"] {
        let output = steps::program(tool)
            .arg("--version")
            .output()
            .map_err(TaskError::io(format!(
                "run {tool} (install gcc and binutils)"
            )))?;
        text += String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()
            .unwrap_or_default();
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn own_fragments() -> Vec<(String, String)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        read_fragments(&root).expect("every fragment of the list is there")
    }

    #[test]
    fn no_two_fragments_contradict_each_other() {
        let mut asked = BTreeMap::new();
        for (fragment, text) in own_fragments() {
            for (option, wanted) in config::wanted(&text) {
                let earlier = asked.insert(option.clone(), wanted.clone());
                assert!(
                    earlier.is_none_or(|earlier| earlier == wanted),
                    "{option} in {fragment}"
                );
            }
        }
    }

    #[test]
    fn every_option_stands_under_a_reason() {
        for (fragment, text) in own_fragments() {
            for group in text.split("\n\n").skip(1) {
                let reason = group.lines().next().unwrap_or_default();
                assert!(
                    reason.starts_with("# ") && !reason.ends_with("is not set"),
                    "{fragment}: a group starts without saying why: {reason}"
                );
            }
        }
    }

    #[test]
    fn every_fragment_of_the_folder_is_used() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernel-config");
        let mut names: Vec<_> = fs::read_dir(root)
            .expect("the folder is there")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".config").map(str::to_owned))
            .collect();
        names.sort();
        let mut used = X86_64_FRAGMENTS.map(str::to_owned);
        used.sort();
        assert_eq!(names, used);
    }

    #[test]
    fn everything_that_decides_the_bytes_decides_the_name() {
        let one = |text: &str| vec![("a".to_owned(), text.to_owned())];
        let base = key("s", &one("x"), "gcc 12");
        assert_ne!(base, key("t", &one("x"), "gcc 12"));
        assert_ne!(base, key("s", &one("y"), "gcc 12"));
        assert_ne!(base, key("s", &one("x"), "gcc 13"));
    }
}
