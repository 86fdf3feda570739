//! Builds the kernel from the pinned source and the fragments in `kernel-config/`.
//!
//! The result lies in the cache under a name made of everything that decides its bytes: the
//! source's hash, the fragments, the compiler and this recipe.

mod config;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::context::Context;
use crate::digest;
use crate::failure::{Failure, Result};
use crate::scratch::Scratch;
use crate::sources;

/// The fragments of the one x86-64 kernel, in the order they are merged.
pub const X86_64_FRAGMENTS: [&str; 13] = [
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
    "net-extra",
];

/// Largest kernel in bytes: docs/SPECIFICATION.md promises at most 9 MB.
pub const BZIMAGE_BYTES_MAX: u64 = 9_000_000;

/// Changed when the steps below change in a way that changes their result.
const RECIPE: &str = "1";

/// Makes two builds of the same inputs byte-identical.
const REPRODUCIBLE: [(&str, &str); 5] = [
    ("KBUILD_BUILD_TIMESTAMP", "1970-01-01"),
    ("KBUILD_BUILD_USER", "alknet"),
    ("KBUILD_BUILD_HOST", "alknet"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("SOURCE_DATE_EPOCH", "0"),
];

/// A built kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The folder's name in the cache.
    pub key: String,
    /// For boot loaders, EFI and QEMU's `-kernel`.
    pub bzimage: PathBuf,
    /// ELF with a PVH entry, without symbols.
    pub vmlinux: PathBuf,
    /// The whole configuration.
    pub config: PathBuf,
}

/// Finds the kernel in the cache, or builds it.
pub fn ensure(cx: &Context) -> Result<Kernel> {
    let fragments = read_fragments(cx.root())?;
    let tools = tool_versions()?;
    if let Some(kernel) = find(cx, &fragments, &tools)? {
        return Ok(kernel);
    }
    cx.install_compilers()?;
    let source = sources::obtain(cx, "linux")?;
    let kernel = Kernel::at(cx.cache(), key(&source.pin.sha256, &fragments, &tools));
    Build::new(cx, &fragments)?.run(&source.path, &kernel)?;
    Ok(kernel)
}

/// The kernel of this tree, if it lies in the cache.
pub(crate) fn cached(cx: &Context) -> Result<Option<Kernel>> {
    find(cx, &read_fragments(cx.root())?, &tool_versions()?)
}

fn find(cx: &Context, fragments: &[(String, String)], tools: &str) -> Result<Option<Kernel>> {
    let pins = sources::accepted("linux")?.into_iter();
    let mut kernels = pins.map(|pin| Kernel::at(cx.cache(), key(&pin.sha256, fragments, tools)));
    Ok(kernels.find(Kernel::exists))
}

impl Kernel {
    fn at(cache: &Path, key: String) -> Self {
        let folder = cache.join("kernel").join(&key);
        Self {
            key,
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

    /// Where its files lie.
    pub(crate) fn folder(&self) -> &Path {
        self.bzimage.parent().unwrap_or(&self.bzimage)
    }
}

fn key(source: &str, fragments: &[(String, String)], tools: &str) -> String {
    let texts = fragments.iter().map(|(_, text)| text.as_bytes());
    digest::key(
        [source.as_bytes(), tools.as_bytes(), RECIPE.as_bytes()]
            .into_iter()
            .chain(texts),
    )
}

fn read_fragments(root: &Path) -> Result<Vec<(String, String)>> {
    let read = |name: &&str| {
        let path = root.join("kernel-config").join(format!("{name}.config"));
        let text =
            fs::read_to_string(&path).map_err(Failure::io(format!("read {}", path.display())))?;
        Ok(((*name).to_owned(), text))
    };
    X86_64_FRAGMENTS.iter().map(read).collect()
}

/// First lines of the compiler's and linker's version texts.
pub fn tool_versions() -> Result<String> {
    let mut text = String::new();
    for tool in ["gcc", "ld"] {
        let output = Command::new(tool)
            .arg("--version")
            .output()
            .map_err(Failure::io(format!(
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

/// One build in a scratch folder, gone when dropped.
struct Build<'a> {
    cx: &'a Context,
    fragments: &'a [(String, String)],
    scratch: Scratch,
}

impl<'a> Build<'a> {
    fn new(cx: &'a Context, fragments: &'a [(String, String)]) -> Result<Self> {
        let scratch = Scratch::new(cx.cache(), "kernel-build-")?;
        Ok(Self {
            cx,
            fragments,
            scratch,
        })
    }

    fn run(&self, source: &Path, kernel: &Kernel) -> Result<()> {
        self.unpack(source)?;
        self.configure()?;
        let mut make = self.make();
        let jobs = format!("-j{}", self.cx.jobs());
        make.args([&*jobs, "bzImage", "vmlinux"]);
        self.cx.run(&mut make, "kernel", "kernel-build")?;
        self.publish(kernel)
    }

    fn source(&self) -> PathBuf {
        self.scratch.path().join("source")
    }

    fn output(&self) -> PathBuf {
        self.scratch.path().join("output")
    }

    fn unpack(&self, archive: &Path) -> Result<()> {
        for folder in [self.source(), self.output()] {
            fs::create_dir(&folder).map_err(Failure::io(format!("make {}", folder.display())))?;
        }
        let mut tar = Command::new("tar");
        tar.args(["--strip-components=1", "-xJf"])
            .arg(archive)
            .arg("-C")
            .arg(self.source());
        self.cx
            .run(&mut tar, "unpack the kernel's source", "kernel-unpack")
    }

    /// Starts from nothing, adds the fragments, and checks that the kernel's own rules kept them.
    fn configure(&self) -> Result<()> {
        let asked = self.output().join("fragments.config");
        let text: String = self
            .fragments
            .iter()
            .map(|(_, text)| text.as_str())
            .collect();
        fs::write(&asked, text).map_err(Failure::io("write the fragments"))?;
        let mut make = self.make();
        make.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &asked);
        self.cx
            .run(&mut make, "kernel configuration", "kernel-config")?;
        let config = fs::read_to_string(self.output().join(".config"))
            .map_err(Failure::io("read the kernel's configuration"))?;
        let lost = config::lost(self.fragments, &config);
        if lost.is_empty() {
            Ok(())
        } else {
            Err(Failure::OptionsLost(lost))
        }
    }

    fn make(&self) -> Command {
        // What runs beside this waits for one another; the kernel waits for nothing.
        let mut make = Command::new("nice");
        make.args(["-n", "10", "make", "-C"])
            .arg(self.source())
            .arg(format!("O={}", self.output().display()));
        make.envs(HashMap::from(REPRODUCIBLE))
            .env_remove("MAKEFLAGS")
            .env("LC_ALL", "C");
        make
    }

    /// Puts the results together beside their place, then moves the folder there in one step.
    fn publish(&self, kernel: &Kernel) -> Result<()> {
        let ready = self.scratch.path().join("ready");
        fs::create_dir(&ready).map_err(Failure::io("make a folder for the kernel"))?;
        let copy = |from: &str, to: &str| {
            fs::copy(self.output().join(from), ready.join(to))
                .map_err(Failure::io(format!("copy the kernel's {from}")))
        };
        let bytes = copy("arch/x86/boot/bzImage", "bzImage")?;
        if bytes > BZIMAGE_BYTES_MAX {
            return Err(Failure::TooLarge {
                what: "the kernel".into(),
                bytes,
                limit: BZIMAGE_BYTES_MAX,
            });
        }
        copy(".config", "config")?;
        let mut strip = Command::new("strip");
        strip
            .args(["--strip-all", "-o"])
            .arg(ready.join("vmlinux"))
            .arg(self.output().join("vmlinux"));
        self.cx
            .run(&mut strip, "strip the kernel", "kernel-strip")?;
        place(&ready, kernel.folder()).map_err(Failure::io("put the kernel into the cache"))
    }
}

/// Another process may have put the same kernel there meanwhile, which is just as good.
fn place(ready: &Path, folder: &Path) -> io::Result<()> {
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::rename(ready, folder) {
        Err(_) if folder.join("bzImage").exists() => Ok(()),
        result => result,
    }
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
